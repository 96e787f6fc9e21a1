"""Rows of a frame from k leading values. Those from whole spectra: `row_table`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.step.bounds import estimate_from_leading, rounding_of_mass
from spectral_monitor.step.frame import Array, MatrixRow
from spectral_monitor.step.moved_bounds import moved
from spectral_monitor.step.overflow import leading_anew, rescaled
from spectral_monitor.step.row_table import make_row
from spectral_monitor.step.spectra import rounding
from torch import Tensor

from spectral_kernels.entry.results import METRICS
from spectral_kernels.rank.bounds import bounds_from_leading_values
from spectral_kernels.runtime.numerics import value_rounding


def leading_rows(
    matrices: Sequence[Matrix],
    method: str,
    values: Sequence[Tensor],
    norms: Tensor,
    *,
    finite: Sequence[bool],
    work: Sequence[str],
    bounds: Sequence[Tensor],
    errors: Sequence[float],
    anew: bool = False,
) -> dict[str, MatrixRow]:
    """Rows by name; all numbers are on the CPU.

    Args:
        matrices: those of the step, in the order of everything else.
        method: name of the method, for the rows.
        values: (k,) leading singular values of a projection U^T A, descending.
        norms: float64 Frobenius norms of the matrices, correct to rounding.
        finite: whether all entries of a matrix are finite numbers; its row is NaN otherwise.
        work: see `spectral_monitor.step.frame.MatrixRow.work`.
        bounds: (k,) float64 of the errors of ``values``, infinite where no more is known than the
            norms tell.
        errors: where these are numbers of cores, how far the singular values of the matrices are
            from theirs, in the 2-norm; 0 elsewhere.
        anew: matrices may be read again, those with values or norms beyond the range of their
            type, which are then solved from scratch.
    """
    exponents = [0] * len(values)
    if anew:
        values, norms, bounds, exponents = _within_range(matrices, values, norms, bounds, finite)
    entropies = _entropies(values, norms, matrices)
    # What was solved from scratch has none of a core.
    errors = [0.0 if exponent else e for e, exponent in zip(errors, exponents, strict=True)]
    return {
        matrix.name: _leading_row(
            matrix, method, ok, done, s.numpy(), b.numpy(), norm, entropy, error, exponent
        )
        for matrix, ok, done, s, b, norm, entropy, error, exponent in zip(
            matrices, finite, work, values, bounds, norms.tolist(), entropies, errors, exponents,
            strict=True,
        )
    }  # fmt: skip


def _within_range(
    matrices: Sequence[Matrix],
    values: Sequence[Tensor],
    norms: Tensor,
    bounds: Sequence[Tensor],
    finite: Sequence[bool],
) -> tuple[Sequence[Tensor], Tensor, Sequence[Tensor], list[int]]:
    """Values, norms and bounds over 2**exponent where they were infinite, and the exponents."""
    exponents = [0] * len(values)
    largest = torch.stack([S[0].double() for S in values])
    which = (torch.isinf(norms) | torch.isinf(largest)).nonzero()[:, 0].tolist()
    if not which:
        return values, norms, bounds, exponents
    values, norms, bounds = list(values), norms.clone(), list(bounds)
    for i in which:
        if finite[i]:
            values[i], norms[i], exponents[i] = leading_anew(matrices[i], len(values[i]))
            bounds[i] = rounding([values[i]], [matrices[i].shape]).bounds[0]
    return values, norms, bounds, exponents


def _entropies(
    values: Sequence[Tensor], norms: Tensor, matrices: Sequence[Matrix]
) -> list[tuple[float, float]]:
    """Proven (low, high) of every entropy, two calls per group of equal k and r.

    The upper ones are those of all the mass that may be free, where the values are rounded.
    """
    groups: dict[tuple[int, int, torch.dtype, float], list[int]] = {}
    for i, (S, matrix) in enumerate(zip(values, matrices, strict=True)):
        unit = value_rounding(*matrix.shape, S.dtype)
        groups.setdefault((len(S), matrix.rank, S.dtype, unit), []).append(i)
    bounds = [(math.nan, math.nan)] * len(values)
    for (_, r, _, unit), members in groups.items():
        S = torch.stack([values[i] for i in members])
        free = rounding_of_mass(S.sum(dim=-1).double(), S[:, 0].double(), S.shape[-1], unit)
        low, _ = bounds_from_leading_values(S, norms[members], r)
        _, high = bounds_from_leading_values(S, (norms[members] ** 2 + free) ** 0.5, r)
        for i, pair in zip(members, zip(low.tolist(), high.tolist(), strict=True), strict=True):
            bounds[i] = pair
    return bounds


def _leading_row(
    matrix: Matrix,
    method: str,
    finite: bool,
    work: str,
    values: Array,
    bounds: Array,
    norm: float,
    entropy: tuple[float, float],
    error: float,
    exponent: int,
) -> MatrixRow:
    identity = (matrix.name, matrix.shape, matrix.kind, method)
    if not finite:
        nothing = (math.nan,) * len(METRICS)
        unknown = np.full(len(values), np.nan)
        values = unknown.astype(values.dtype)
        return make_row(identity, False, work, values, unknown, nothing, nothing)
    estimate = estimate_from_leading(values, norm, matrix.shape, entropy, bounds, rank=matrix.rank)
    if error:
        estimate = moved(estimate, values, matrix.shape, matrix.rank, error)
    if exponent:
        estimate = rescaled(estimate, exponent)
        with np.errstate(over="ignore"):
            values = np.ldexp(values, exponent)
    return make_row(
        identity, True, work, values, estimate.value_bounds, estimate.values, estimate.bounds
    )
