"""One step's numbers for a list of matrices: exact, or from a few leading triplets.

Everything here is a handful of calls for the whole list, however many shapes it has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from python_api.bounds import estimate_from_leading, rounding_bounds
from python_api.frame import Array, MatrixRow
from python_api.matrices import Matrix
from spectral_kernels.rank.bounds import effective_rank_bounds
from spectral_kernels.rank.op import summary_tables_list
from spectral_kernels.results import METRICS, SVD, Snapshot
from spectral_kernels.rsvd.op import rsvd_list
from spectral_kernels.svd.op import svd_list, svdvals_list

__all__ = ["ExactSolver", "RandomizedSolver", "Solver", "to_arrays"]


class Solver(Protocol):
    """How a step's matrices become rows, and vectors for alignment and agreement."""

    def solve(self, snapshot: Snapshot, vectors: Sequence[bool]) -> list[SVD]:
        """SVDs in order; U and Vh are empty where ``vectors`` says they are not needed."""
        ...

    def rows(self, snapshot: Snapshot, svds: Sequence[SVD]) -> dict[str, MatrixRow]:
        """Rows by matrix name."""
        ...


def to_arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """NumPy arrays of many 1-D tensors through one copy (on a GPU: one transfer)."""
    if not tensors:
        return []
    joined = torch.cat(list(tensors)).cpu().numpy()
    ends = itertools.accumulate(tensor.shape[0] for tensor in tensors)
    return [joined[start:end] for start, end in itertools.pairwise((0, *ends))]


@dataclass(frozen=True, slots=True)
class ExactSolver:
    """All singular values of every matrix."""

    matrices: Sequence[Matrix]

    def solve(self, snapshot: Snapshot, vectors: Sequence[bool]) -> list[SVD]:
        """Whole SVDs where vectors are needed, values alone elsewhere."""
        packed = snapshot.matrices
        if all(vectors):
            return svd_list(packed)
        whole = iter(svd_list([a for a, needed in zip(packed, vectors, strict=True) if needed]))
        values = iter(
            svdvals_list([a for a, needed in zip(packed, vectors, strict=True) if not needed])
        )
        none = packed[0].new_empty((0, 0))
        return [next(whole) if needed else SVD(none, next(values), none) for needed in vectors]

    def rows(self, snapshot: Snapshot, svds: Sequence[SVD]) -> dict[str, MatrixRow]:
        """Rows with rounding-level bounds."""
        spectra = [svd.S for svd in svds]
        tables = summary_tables_list(spectra, [matrix.shape for matrix in self.matrices])
        summaries = torch.stack(tables).tolist()
        finite = snapshot.finite.tolist()
        # float64 spectra would widen the others if all were joined.
        values = _by_dtype(spectra)
        return {
            matrix.name: _row(matrix, "exact", is_finite != 0.0, value, summary, rounding_bounds)
            for matrix, summary, is_finite, value in zip(
                self.matrices, summaries, finite, values, strict=True
            )
        }


def _row(
    matrix: Matrix,
    method: str,
    finite: bool,
    values: Array,
    summary: Sequence[float],
    bounds: Callable[[MatrixRow], dict[str, float]],
) -> MatrixRow:
    entropy, exponential, stable, rank, spectral, nuclear, frobenius = summary
    return MatrixRow(
        matrix.name, matrix.shape, matrix.kind, method, finite, values, entropy, exponential,
        stable, rank, spectral, nuclear, frobenius, bounds,
    )  # fmt: skip


def _by_dtype(tensors: Sequence[Tensor]) -> list[Array]:
    if len({tensor.dtype for tensor in tensors}) == 1:
        return to_arrays(tensors)
    return [tensor.cpu().numpy() for tensor in tensors]


class RandomizedSolver:
    """k leading triplets of every matrix, warm-started from the step before."""

    def __init__(self, matrices: Sequence[Matrix], k: int, generator: torch.Generator) -> None:
        self.matrices = matrices
        self.ranks = [min(k, *matrix.shape) for matrix in matrices]
        self.generator = generator
        self.start: list[Tensor | None] = [None] * len(matrices)

    def solve(self, snapshot: Snapshot, vectors: Sequence[bool]) -> list[SVD]:
        """Leading triplets; the right vectors are kept for the next step."""
        finite = snapshot.finite.tolist()
        # A warm start takes the place of one power iteration: the last step's vectors have
        # the whole history of the run in them.
        warm = any(start is not None for start in self.start)
        svds = rsvd_list(
            snapshot.matrices,
            self.ranks,
            power_iters=1 if warm else 2,
            generator=self.generator,
            start=self.start,
        )
        # A NaN would stay in the start for ever: such a matrix keeps the start it had.
        self.start = [
            svd.Vh.mT.contiguous() if ok else before
            for svd, ok, before in zip(svds, finite, self.start, strict=True)
        ]
        return svds

    def memory(self) -> dict[str, int]:
        """Matrix -> bytes of its warm start."""
        sizes = {}
        for matrix, k in zip(self.matrices, self.ranks, strict=True):
            tensor = matrix.get()
            size = 8 if tensor is not None and tensor.dtype == torch.float64 else 4
            sizes[matrix.name] = size * k * matrix.shape[1]
        return sizes

    def state(self) -> dict[str, Tensor]:
        """Warm starts by matrix name."""
        return {
            matrix.name: start
            for matrix, start in zip(self.matrices, self.start, strict=True)
            if start is not None
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the warm starts of a state.

        Raises:
            ValueError: a block of another shape, as from another ``k``.
        """
        loaded: list[Tensor | None] = []
        for matrix, k in zip(self.matrices, self.ranks, strict=True):
            start = state.get(matrix.name)
            if start is not None and start.shape != (matrix.shape[1], k):
                raise ValueError(
                    f"state: the warm start of {matrix.name!r} is {tuple(start.shape)}, "
                    f"expected {(matrix.shape[1], k)}"
                )
            loaded.append(None if start is None else start.clone())
        self.start = loaded

    def rows(self, snapshot: Snapshot, svds: Sequence[SVD]) -> dict[str, MatrixRow]:
        """Rows with bounds from what the leading values leave of the Frobenius norm."""
        norms = snapshot.frobenius_norm.tolist()
        finite = snapshot.finite.tolist()
        entropies = _entropies(svds, snapshot.frobenius_norm, self.matrices)
        values = _by_dtype([svd.S for svd in svds])
        rows = {}
        for i, matrix in enumerate(self.matrices):
            row = (
                _estimated(matrix, values[i], norms[i], entropies[i])
                if finite[i]
                else _not_finite(matrix, values[i])
            )
            rows[matrix.name] = row
        return rows


def _entropies(
    svds: Sequence[SVD], norms: Tensor, matrices: Sequence[Matrix]
) -> list[tuple[float, float]]:
    """Proven (low, high) of every entropy, one call per group of equal k and r."""
    groups: dict[tuple[int, int, torch.dtype], list[int]] = {}
    for i, (svd, matrix) in enumerate(zip(svds, matrices, strict=True)):
        groups.setdefault((len(svd.S), min(matrix.shape), svd.S.dtype), []).append(i)
    bounds = [(math.nan, math.nan)] * len(svds)
    for (_, r, _), members in groups.items():
        low, high = effective_rank_bounds(
            torch.stack([svds[i].S for i in members]), norms[members], r
        )
        for i, pair in zip(members, zip(low.tolist(), high.tolist(), strict=True), strict=True):
            bounds[i] = pair
    return bounds


def _estimated(
    matrix: Matrix, values: Array, norm: float, entropy: tuple[float, float]
) -> MatrixRow:
    estimate = estimate_from_leading(values, norm, matrix.shape, entropy)
    bounds = estimate.bounds
    return _row(matrix, "randomized", True, values, estimate.values, lambda row: dict(bounds))


def _not_finite(matrix: Matrix, values: Array) -> MatrixRow:
    bounds = dict.fromkeys(("singular_values", *METRICS), math.nan)
    nothing = [math.nan] * len(METRICS)
    unknown = np.full_like(values, np.nan)
    return _row(matrix, "randomized", False, unknown, nothing, lambda row: dict(bounds))
