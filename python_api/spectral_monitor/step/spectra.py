"""Whole spectra, and what is known of their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.runtime.numerics import value_rounding


class Spectra(NamedTuple):
    """Whole spectra with what is known of their errors, one entry per matrix."""

    values: list[Tensor]
    """(r,) of every matrix, descending."""
    bounds: list[Tensor]
    """(r,) float64, of every value."""
    norms: list[Tensor]
    """() float64, of the 2-norm of all errors."""


def rounding(values: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Spectra:
    """Spectra of (m, n) matrices that are known up to the rounding of a solution from scratch."""
    bounds, norms = [], []
    for S, (m, n) in zip(values, shapes, strict=True):
        info = torch.finfo(S.dtype)
        # Between denormal numbers, the rounding of the result is not relative.
        least = info.smallest_normal * info.eps
        size = value_rounding(m, n, S.dtype) * S[:1].double()
        size = torch.where(size > 0, size + least, size)
        bounds.append(size.expand(len(S)))
        norms.append(size[0] * len(S) ** 0.5)
    return Spectra(list(values), bounds, norms)
