"""Whole spectra, and what is known of their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Spectra", "rounding"]

# In eps sigma_1: what the exact solvers are held to.
_ROUNDING = 8.0


class Spectra(NamedTuple):
    """Whole spectra with what is known of their errors, one entry per matrix."""

    values: list[Tensor]
    """(r,)"""
    bounds: list[Tensor]
    """(r,) float64, of every value."""
    norms: list[Tensor]
    """() float64, of the 2-norm of all errors."""


def rounding(values: Sequence[Tensor]) -> Spectra:
    """Spectra that are known up to the rounding that the exact solvers are held to."""
    bounds, norms = [], []
    for S in values:
        size = _ROUNDING * torch.finfo(S.dtype).eps * S[:1].double()
        bounds.append(size.expand(len(S)))
        norms.append(size[0] * len(S) ** 0.5)
    return Spectra(list(values), bounds, norms)
