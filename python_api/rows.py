"""Rows of a frame: from whole spectra with their bounds, or from k leading values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from python_api.bounds import estimate_from_leading, rounding_of_mass
from python_api.frame import Array, MatrixRow
from python_api.matrices import Matrix
from python_api.views import ArrayViews, consecutive
from spectral_kernels.rank.bounds import effective_rank_bounds
from spectral_kernels.rank.summary_bounds import BoundedSummaries
from spectral_kernels.results import METRICS

__all__ = [
    "PackedRows",
    "RowMaker",
    "Spectra",
    "leading_rows",
    "rounding",
    "spectra_of",
    "split",
    "to_arrays",
]

# In eps sigma_1: what the exact solvers are held to.
_ROUNDING = 8.0


def to_arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """NumPy arrays of many 1-D tensors through one copy (on a GPU: one transfer)."""
    if not tensors:
        return []
    if len({tensor.dtype for tensor in tensors}) > 1:
        # Joined, the float64 ones would widen the others.
        return [tensor.to("cpu", copy=True).numpy() for tensor in tensors]
    joined = torch.cat(list(tensors)).cpu().numpy()
    return split(joined, [len(tensor) for tensor in tensors])


def split(joined: Array, lengths: Sequence[int]) -> list[Array]:
    """Consecutive parts of these lengths: views."""
    ends = itertools.accumulate(lengths)
    return [joined[start:end] for start, end in itertools.pairwise((0, *ends))]


class Spectra(NamedTuple):
    """Whole spectra with what is known of their errors, one entry per matrix."""

    values: list[Tensor]
    """(r,)"""
    bounds: list[Tensor]
    """(r,) float64, of every value."""
    norms: list[Tensor]
    """() float64, of the 2-norm of all errors."""


class RowMaker:
    """Rows from whole spectra, ranks and norms with their bounds from one call.

    Spectra in the same tensors as last time cost no preparation.

    Args:
        matrices: those of every step, in order.
        method: name of the method, for the rows.
    """

    def __init__(self, matrices: Sequence[Matrix], method: str) -> None:
        self._told = [(m.name, m.shape, m.kind, method) for m in matrices]
        self._sides = np.array([[min(m.shape)] for m in matrices], dtype=np.float64)
        self._summaries: BoundedSummaries | None = None
        self._spectra: Spectra | None = None

    def rows(
        self, spectra: Spectra, finite: Sequence[bool], work: Sequence[str]
    ) -> Mapping[str, MatrixRow]:
        """Rows by name; ``finite`` and ``work`` as in `python_api.frame.MatrixRow`."""
        if self._summaries is None or not (
            spectra is self._spectra or self._summaries.fits(*spectra)
        ):
            shapes = [shape for _, shape, _, _ in self._told]
            self._summaries = BoundedSummaries(*spectra, shapes)
            self._spectra = spectra
            names, lengths = [told[0] for told in self._told], [len(S) for S in spectra.values]
            self._slices = consecutive(names, lengths)
            self._one_dtype = len({S.dtype for S in spectra.values}) <= 1
        tables = self._summaries.run().to("cpu", copy=True).numpy()
        if not self._one_dtype:
            # Joined, the float64 ones would widen the others.
            return self._each(spectra, tables, finite, work)
        return PackedRows(
            self._told,
            self._sides,
            ArrayViews(_joined(spectra.values), self._slices),
            ArrayViews(_joined(spectra.bounds), self._slices),
            tables,
            finite,
            work,
        )

    def _each(
        self, spectra: Spectra, tables: Array, finite: Sequence[bool], work: Sequence[str]
    ) -> dict[str, MatrixRow]:
        arrays = to_arrays(spectra.values), to_arrays(spectra.bounds)
        parts = zip(self._told, finite, work, *arrays, *tables.tolist(), strict=True)
        return {entry[0][0]: _row(*entry) for entry in parts}


class PackedRows(Mapping[str, MatrixRow]):
    """Rows by name, each made when it is asked for.

    Args:
        told: (name, shape, kind, method) of each, in order.
        values, bounds: singular values and bounds of their errors, by name.
        tables: (2, matrices, 7) float64: the metrics, and their bounds.
        finite, work: see `python_api.frame.MatrixRow`.
        sides: (matrices, 1) the short side of each.
    """

    def __init__(
        self,
        told: Sequence[tuple[str, tuple[int, int], str, str]],
        sides: Array,
        values: ArrayViews[str],
        bounds: ArrayViews[str],
        tables: Array,
        finite: Sequence[bool],
        work: Sequence[str],
    ) -> None:
        self.told, self.values_of, self.bounds_of = told, values, bounds
        self.tables, self.finite, self.work = tables, finite, work
        self.method = told[0][3]
        self.sides = sides
        self._made: dict[str, MatrixRow] = {}

    def __getitem__(self, name: str) -> MatrixRow:
        row = self._made.get(name)
        if row is None:
            i = list(self.values_of.slices).index(self._known(name))
            row = self._made[name] = _row(
                self.told[i], self.finite[i], self.work[i],
                self.values_of[name], self.bounds_of[name], *self.tables[:, i].tolist(),
            )  # fmt: skip
        return row

    def _known(self, name: str) -> str:
        if name not in self.values_of.slices:
            raise KeyError(name)
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)

    def __repr__(self) -> str:
        return f"PackedRows({list(self)})"


def spectra_of(
    rows: Mapping[str, MatrixRow], names: Sequence[str]
) -> tuple[ArrayViews[str], ArrayViews[str]]:
    """Singular values and bounds of these matrices."""
    if isinstance(rows, PackedRows):
        return rows.values_of, rows.bounds_of
    return (
        ArrayViews.of({name: rows[name].singular_values for name in names}),
        ArrayViews.of({name: rows[name].singular_value_bounds for name in names}),
    )


def _joined(tensors: Sequence[Tensor]) -> Array:
    return torch.cat(list(tensors)).cpu().numpy()


def _row(
    told: tuple[str, tuple[int, int], str, str],
    finite: bool,
    work: str,
    values: Array,
    value_bounds: Array,
    metrics: Sequence[float],
    bounds: Sequence[float],
) -> MatrixRow:
    name, shape, kind, method = told
    entropy, exponential, stable, rank, spectral, nuclear, frobenius = metrics
    return MatrixRow(
        name, shape, kind, method, finite, work, values, value_bounds,
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
    """Proven (low, high) of every entropy, two calls per group of equal k and r.

    The upper ones are those of all the mass that may be free, where the values are rounded.
    """
    groups: dict[tuple[int, int, torch.dtype], list[int]] = {}
    for i, (S, matrix) in enumerate(zip(values, matrices, strict=True)):
        groups.setdefault((len(S), min(matrix.shape), S.dtype), []).append(i)
    bounds = [(math.nan, math.nan)] * len(values)
    for (_, r, _), members in groups.items():
        S = torch.stack([values[i] for i in members])
        eps = torch.finfo(S.dtype).eps
        free = rounding_of_mass(S.sum(dim=-1).double(), S[:, 0].double(), S.shape[-1], eps)
        low, _ = effective_rank_bounds(S, norms[members], r)
        _, high = effective_rank_bounds(S, (norms[members] ** 2 + free) ** 0.5, r)
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
    told = (matrix.name, matrix.shape, matrix.kind, method)
    if not finite:
        nothing = (math.nan,) * len(METRICS)
        unknown = np.full(len(values), np.nan)
        values = unknown.astype(values.dtype)
        return _row(told, False, work, values, unknown, nothing, nothing)
    found = estimate_from_leading(values, norm, matrix.shape, entropy, bounds)
    return _row(told, True, work, values, found.value_bounds, found.values, found.bounds)
