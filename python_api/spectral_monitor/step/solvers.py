"""One step's numbers for a list of matrices: exact, or from a few leading triplets.

Everything here is a handful of calls for the whole list, however many shapes it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from spectral_monitor.model.matrix import Kept, Matrix
from spectral_monitor.step.cores import Cores
from spectral_monitor.step.frame import Array, MatrixRow
from spectral_monitor.step.rows import RowMaker, Spectra, leading_rows, rounding, to_arrays
from torch import Tensor

from spectral_kernels.entry.results import SVD, Snapshot
from spectral_kernels.rsvd.op import rsvd_list
from spectral_kernels.snapshot.op import snapshot_list
from spectral_kernels.svd.op import svd_list, svdvals_list

__all__ = ["ExactSolver", "Measured", "RandomizedSolver", "Solver", "to_arrays"]


class Measured(NamedTuple):
    """One step of all matrices, in their order."""

    svds: list[SVD]
    """U and Vh are empty where nobody asked for vectors, and have k columns or rows where only k
    are computed."""
    with_parts: Sequence[SVD]
    """The same, and those of the parts after them."""
    finite: list[bool]
    rows: Mapping[str, MatrixRow]
    identities: Mapping[str, Array] = {}
    """Which vector is where, as of `spectral_kernels.SpectrumTracker`; none without tracking."""


class Solver(Protocol):
    """How the matrices of a step become rows, and vectors for alignment and agreement.

    Parts (`model.submatrices`), which have no rows, are read and solved together with the matrices
    under watch.
    """

    @property
    def resolves(self) -> int:
        """How often a matrix had to be solved anew because tracking lost it."""
        ...

    def measure(self, read: Sequence[Kept], vectors: Sequence[bool]) -> Measured:
        """Solve all matrices, as they were read; ``vectors`` says of which singular vectors are
        needed. Those of parts are at the end of both."""
        ...

    def state(self) -> dict[str, Any]:
        """What the next step needs of this one, for ``state_dict``."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is that of other matrices or of another ``k``.
        """
        ...


class ExactSolver:
    """All singular values of every matrix, from scratch at every step.

    Args:
        matrices: those under watch.
        vectors: how many leading vectors of decomposed ones at most; of others, all.
        parts: see `Solver`.
    """

    def __init__(
        self, matrices: Sequence[Matrix], vectors: int, parts: Sequence[Matrix] = ()
    ) -> None:
        self.matrices, self.measured = matrices, [*matrices, *parts]
        self.cores = Cores(self.measured, vectors)

    @property
    def resolves(self) -> int:
        """0: nothing is tracked."""
        return 0

    def measure(self, read: Sequence[Kept], vectors: Sequence[bool]) -> Measured:
        """Copies of all matrices, solved."""
        return _measure_copies(self, read, vectors)

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

    def rows(self, snapshot: Snapshot, svds: Sequence[SVD]) -> Mapping[str, MatrixRow]:
        """Rows with rounding-level bounds."""
        count = len(self.matrices)
        spectra = self.cores.widen(
            rounding([svd.S for svd in svds], [a.shape for a in snapshot.matrices])
        )
        own = Spectra(*(part[:count] for part in spectra))
        finite = _finite(snapshot)[:count]
        return RowMaker(self.matrices, "exact").rows(own, finite, [""] * count)

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


def _measure_copies(
    solver: ExactSolver | RandomizedSolver, read: Sequence[Kept], vectors: Sequence[bool]
) -> Measured:
    snapshot = snapshot_list(solver.cores.take(read, vectors))
    svds = solver.solve(snapshot, vectors)
    solver.cores.rescale(svds)
    rows = solver.rows(snapshot, svds)
    lifted, count = solver.cores.lift(svds), len(solver.matrices)
    return Measured(lifted[:count], lifted, _finite(snapshot)[:count], rows)


def _finite(snapshot: Snapshot) -> list[bool]:
    return [entry != 0.0 for entry in snapshot.finite.tolist()]


class RandomizedSolver:
    """k leading triplets of every matrix, warm-started from the step before."""

    def __init__(
        self,
        matrices: Sequence[Matrix],
        k: int,
        generator: torch.Generator,
        parts: Sequence[Matrix] = (),
    ) -> None:
        self.matrices, self.measured = matrices, [*matrices, *parts]
        self.cores = Cores(self.measured, k)
        self.ranks = [min(k, matrix.rank) for matrix in self.measured]
        self.generator = generator
        self.start: list[Tensor | None] = [None] * len(self.measured)

    @property
    def resolves(self) -> int:
        """0: every step is a solution of its own."""
        return 0

    def measure(self, read: Sequence[Kept], vectors: Sequence[bool]) -> Measured:
        """Copies of all matrices, their leading triplets."""
        return _measure_copies(self, read, vectors)

    def solve(self, snapshot: Snapshot, vectors: Sequence[bool]) -> list[SVD]:
        """Leading triplets; the right vectors are kept for the next step."""
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
            for svd, ok, before in zip(svds, _finite(snapshot), self.start, strict=True)
        ]
        return svds

    def rows(self, snapshot: Snapshot, svds: Sequence[SVD]) -> Mapping[str, MatrixRow]:
        """Rows with bounds from what the leading values leave of the Frobenius norm."""
        count = len(self.matrices)
        return leading_rows(
            self.matrices, "randomized", [svd.S for svd in svds[:count]],
            snapshot.frobenius_norm[:count], finite=_finite(snapshot)[:count], work=[""] * count,
            errors=self.cores.errors()[:count], anew=True,
        )  # fmt: skip

    def memory(self) -> dict[str, int]:
        """Matrix -> bytes of its warm start."""
        return {
            matrix.name: matrix.result_bytes * k * matrix.core[1]
            for matrix, k in zip(self.measured, self.ranks, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """Warm starts by matrix name."""
        starts = zip(self.measured, self.start, strict=True)
        return {matrix.name: start for matrix, start in starts if start is not None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the warm starts of a state.

        Raises:
            ValueError: a block of another shape, as from another ``k``.
        """
        loaded: list[Tensor | None] = []
        for matrix, k in zip(self.measured, self.ranks, strict=True):
            start = state.get(matrix.name)
            if start is not None and start.shape != (matrix.core[1], k):
                raise ValueError(
                    f"state: the warm start of {matrix.name!r} is {tuple(start.shape)}, "
                    f"expected {(matrix.core[1], k)}"
                )
            loaded.append(None if start is None else start.clone())
        self.start = loaded
