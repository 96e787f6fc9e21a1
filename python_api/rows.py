"""Rows of a frame: from whole spectra with their bounds, or from k leading values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from python_api.bounds import estimate_from_leading
from python_api.frame import Array, MatrixRow
from python_api.matrices import Matrix
from spectral_kernels.rank.bounds import effective_rank_bounds
from spectral_kernels.rank.summary_bounds import bounded_summaries_list
from spectral_kernels.results import METRICS

__all__ = ["Spectra", "leading_rows", "rounding", "to_arrays"]

# In eps sigma_1: what the exact solvers are held to.
_ROUNDING = 8.0


def to_arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """NumPy arrays of many 1-D tensors through one copy (on a GPU: one transfer)."""
    if not tensors:
        return []
    if len({tensor.dtype for tensor in tensors}) > 1:
        # Joined, the float64 ones would widen the others.
        return [tensor.cpu().numpy() for tensor in tensors]
    joined = torch.cat(list(tensors)).cpu().numpy()
    ends = itertools.accumulate(tensor.shape[0] for tensor in tensors)
    return [joined[start:end] for start, end in itertools.pairwise((0, *ends))]


class Spectra(NamedTuple):
    """Whole spectra with what is known of their errors, one entry per matrix."""

    values: list[Tensor]
    """(r,)"""
    bounds: list[Tensor]
    """(r,) float64, of every value."""
    norms: list[Tensor]
    """() float64, of the 2-norm of all errors."""

    def rows(
        self, matrices: Sequence[Matrix], method: str, finite: Sequence[bool], work: Sequence[str]
    ) -> dict[str, MatrixRow]:
        """Rows by name, ranks and norms with their bounds from one call."""
        block = bounded_summaries_list(
            self.values, self.bounds, self.norms, [matrix.shape for matrix in matrices]
        )
        metrics, radii = block.tolist()
        return {
            matrix.name: _row(matrix, method, ok, done, s, b, numbers, errors)
            for matrix, ok, done, s, b, numbers, errors in zip(
                matrices, finite, work, to_arrays(self.values), to_arrays(self.bounds),
                metrics, radii, strict=True,
            )
        }  # fmt: skip


def _row(
    matrix: Matrix,
    method: str,
    finite: bool,
    work: str,
    values: Array,
    value_bounds: Array,
    metrics: Sequence[float],
    bounds: Sequence[float],
) -> MatrixRow:
    entropy, exponential, stable, rank, spectral, nuclear, frobenius = metrics
    return MatrixRow(
        matrix.name, matrix.shape, matrix.kind, method, finite, work, values, value_bounds,
        entropy, exponential, stable, rank, spectral, nuclear, frobenius, bounds,
    )  # fmt: skip


def rounding(values: Sequence[Tensor]) -> Spectra:
    """Spectra that are known up to the rounding that the exact solvers are held to."""
    bounds, norms = [], []
    for S in values:
        size = _ROUNDING * torch.finfo(S.dtype).eps * S[:1].double()
        bounds.append(size.expand(len(S)))
        norms.append(size[0] * len(S) ** 0.5)
    return Spectra(list(values), bounds, norms)


def leading_rows(
    matrices: Sequence[Matrix],
    method: str,
    values: Sequence[Tensor],
    norms: Tensor,
    *,
    finite: Sequence[bool],
    work: Sequence[str],
    bounds: Sequence[Tensor] | None = None,
) -> dict[str, MatrixRow]:
    """Rows by name.

    Args:
        matrices: those of the step, in the order of everything else.
        method: name of the method, for the rows.
        values: (k,) leading singular values of a projection U^T A, descending.
        norms: float64 Frobenius norms of the matrices, correct to rounding.
        finite: whether all entries of a matrix are finite numbers; its row is NaN otherwise.
        work: see `python_api.frame.MatrixRow.work`.
        bounds: (k,) of the errors of ``values``, where more is known than the norms tell.
    """
    entropies = _entropies(values, norms, matrices)
    spectra = to_arrays(values)
    radii: Sequence[Array | None] = [None] * len(values) if bounds is None else to_arrays(bounds)
    return {
        matrix.name: _leading_row(matrix, method, ok, done, s, b, norm, entropy)
        for matrix, ok, done, s, b, norm, entropy in zip(
            matrices, finite, work, spectra, radii, norms.tolist(), entropies, strict=True
        )
    }


def _entropies(
    values: Sequence[Tensor], norms: Tensor, matrices: Sequence[Matrix]
) -> list[tuple[float, float]]:
    """Proven (low, high) of every entropy, one call per group of equal k and r."""
    groups: dict[tuple[int, int, torch.dtype], list[int]] = {}
    for i, (S, matrix) in enumerate(zip(values, matrices, strict=True)):
        groups.setdefault((len(S), min(matrix.shape), S.dtype), []).append(i)
    bounds = [(math.nan, math.nan)] * len(values)
    for (_, r, _), members in groups.items():
        low, high = effective_rank_bounds(
            torch.stack([values[i] for i in members]), norms[members], r
        )
        for i, pair in zip(members, zip(low.tolist(), high.tolist(), strict=True), strict=True):
            bounds[i] = pair
    return bounds


def _leading_row(
    matrix: Matrix,
    method: str,
    finite: bool,
    work: str,
    values: Array,
    bounds: Array | None,
    norm: float,
    entropy: tuple[float, float],
) -> MatrixRow:
    if not finite:
        nothing = (math.nan,) * len(METRICS)
        unknown = np.full(len(values), np.nan)
        values = unknown.astype(values.dtype)
        return _row(matrix, method, False, work, values, unknown, nothing, nothing)
    found = estimate_from_leading(values, norm, matrix.shape, entropy, bounds)
    return _row(matrix, method, True, work, values, found.value_bounds, found.values, found.bounds)
