"""How the matrices of a step are solved: from scratch, by leading triplets, or from the last step.

A solver gives one `Solved` for each matrix and part; everything else of a step follows from these
(`spectral_monitor.step.derived`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from spectral_monitor.model.matrix import Kept, Matrix
from spectral_monitor.step.spectra import rounding
from torch import Tensor

from spectral_kernels.entry.factors import Matrices, enter_matrices
from spectral_kernels.entry.results import SVD, Snapshot
from spectral_kernels.rsvd.op import rsvd_list
from spectral_kernels.snapshot.op import snapshot_list
from spectral_kernels.svd.op import svd_list, svdvals_list


class Solved(NamedTuple):
    """One matrix after a step of a solver; its numbers may be overwritten by the next."""

    svd: SVD
    """U and Vh are empty where nobody asked for vectors, and have k columns or rows where only k
    are computed; S has all values or k."""
    bounds: Tensor
    """Of the errors of S, float64; infinite where no more is known than the norm of the matrix."""
    norm: Tensor
    """() float64: of the 2-norm of all errors, or where S has k values, the Frobenius norm of the
    matrix."""
    code: Tensor
    """() number: below 0 where the matrix is not finite, else the index in `Solver.work_names`."""
    error: Tensor | None = None
    """() float64, of a decomposed matrix: how far its values are from those of its core at most,
    where that is not in ``bounds``."""
    identities: Tensor | None = None
    """(as S) int64, of a tracker."""
    lost: Tensor | None = None
    """() bool, of a tracker: whether the bounds exceed the tolerance."""


class Solver(Protocol):
    """Solves the matrices of a step, and parts after them, which have no rows
    (`spectral_monitor.model.submatrices`).

    ``method`` is the name that rows have. ``complete`` are the matrices of which all singular
    values are known, ``partial`` those with leading ones; parts are in neither.
    """

    method: str
    complete: list[int]
    partial: list[int]
    in_place: bool
    """Whether results mostly are where they were at the last step."""

    @property
    def resolves(self) -> int:
        """How often a matrix had to be solved anew because tracking lost it."""
        ...

    def work_names(self, i: int) -> Sequence[str]:
        """`spectral_monitor.step.frame.MatrixRow.work` of a matrix by the code of its result."""
        ...

    def update(self, given: Sequence[Kept]) -> list[Solved]:
        """Solve all matrices and parts."""
        ...

    def prepared(self) -> Any:
        """The last update as an entry of a program, where it can be repeated without Python
        (`spectral_kernels.runtime.program`); else None."""
        ...

    def state(self) -> dict[str, Any]:
        """What the next step needs of the last one, for a monitor's state."""
        ...

    def load_state(self, state: Any) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is that of other matrices or of another ``k``.
        """
        ...


class _FromScratch:
    """What the solvers have in common that keep no vectors to go on from."""

    in_place = False
    resolves = 0

    def work_names(self, i: int) -> Sequence[str]:
        """Empty names: a solution from scratch has no work to name."""
        return ("",)

    def prepared(self) -> None:
        """None, since results are new tensors each time."""
        return


class ExactSolver(_FromScratch):
    """All singular values of every matrix, from scratch at every step.

    Args:
        matrices: those under watch.
        vectors: how many leading vectors of decomposed ones at most; of others, all.
        needed: of which matrices and parts vectors are asked for.
    """

    method = "exact"

    def __init__(self, matrices: Sequence[Matrix], vectors: int, needed: Sequence[bool]) -> None:
        self._needed, self._vectors = list(needed), vectors
        self.complete: list[int] = list(range(len(matrices)))
        self.partial: list[int] = []

    def update(self, given: Sequence[Kept]) -> list[Solved]:
        """Copies of all matrices, solved."""
        matrices = _entered(given, [self._vectors * needed for needed in self._needed])
        snapshot = snapshot_list(matrices.tensors)
        svds = self._solve(snapshot.matrices)
        values = [svd.S for svd in svds]
        errors = rounding(values, [tuple(a.shape) for a in snapshot.matrices])
        return [
            Solved(*numbers)
            for numbers in zip(
                matrices.lifted(svds),
                matrices.bounded(errors.bounds, values),
                matrices.bounded(errors.norms, values),
                _codes(snapshot),
                strict=True,
            )
        ]

    def _solve(self, packed: list[Tensor]) -> list[SVD]:
        """Whole SVDs where vectors are needed, values alone elsewhere."""
        if all(self._needed):
            return svd_list(packed)
        both = list(zip(packed, self._needed, strict=True))
        whole = iter(svd_list([a for a, needed in both if needed]))
        values = iter(svdvals_list([a for a, needed in both if not needed]))
        return [next(whole) if needed else _values_of(a, next(values)) for a, needed in both]

    def state(self) -> dict[str, Any]:
        """Empty: each step is from scratch."""
        return {}

    def load_state(self, state: Any) -> None:
        """Nothing to load."""


class RandomizedSolver(_FromScratch):
    """k leading triplets of every matrix, warm-started from the step before.

    Args:
        matrices: those under watch.
        k: how many triplets.
        generator: of the random start.
        parts: see `Solver`.
    """

    method = "randomized"

    def __init__(
        self,
        matrices: Sequence[Matrix],
        k: int,
        generator: torch.Generator,
        parts: Sequence[Matrix] = (),
    ) -> None:
        self._measured = [*matrices, *parts]
        self._ranks = [min(k, matrix.rank) for matrix in self._measured]
        self._generator = generator
        self._start: list[Tensor | None] = [None] * len(self._measured)
        self.complete: list[int] = []
        self.partial: list[int] = list(range(len(matrices)))

    def update(self, given: Sequence[Kept]) -> list[Solved]:
        """Copies of all matrices, their leading triplets; the right vectors are kept."""
        matrices = _entered(given, self._ranks)
        snapshot = snapshot_list(matrices.tensors)
        codes = _codes(snapshot)
        svds = self._solve(snapshot.matrices, snapshot.finite.tolist())
        norms = matrices.whole(list(snapshot.frobenius_norm.unbind()))
        lifted = matrices.lifted(svds)
        errors = {i: core.error for i, core in matrices.cores.items()}
        return [
            Solved(svd, torch.full_like(svd.S, torch.inf, dtype=torch.float64), norm, code,
                   errors.get(i))
            for i, (svd, norm, code) in enumerate(zip(lifted, norms, codes, strict=True))
        ]  # fmt: skip

    def _solve(self, packed: list[Tensor], finite: Sequence[float]) -> list[SVD]:
        # A warm start takes the place of one power iteration: the last step's vectors have
        # the whole history of the run in them.
        warm = any(start is not None for start in self._start)
        svds = rsvd_list(
            packed,
            self._ranks,
            power_iters=1 if warm else 2,
            generator=self._generator,
            start=self._start,
        )
        # A NaN would stay in the start for ever: such a matrix keeps the start it had.
        self._start = [
            svd.Vh.mT.contiguous() if ok else before
            for svd, ok, before in zip(svds, finite, self._start, strict=True)
        ]
        return svds

    def memory(self) -> dict[str, int]:
        """Matrix -> bytes of its warm start."""
        return {
            matrix.name: matrix.result_bytes * k * matrix.core[1]
            for matrix, k in zip(self._measured, self._ranks, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """Warm starts by matrix name."""
        starts = zip(self._measured, self._start, strict=True)
        return {matrix.name: start for matrix, start in starts if start is not None}

    def load_state(self, state: Any) -> None:
        """Take the warm starts of a state.

        Raises:
            ValueError: a block of another shape, as from another ``k``.
        """
        loaded: list[Tensor | None] = []
        for matrix, k in zip(self._measured, self._ranks, strict=True):
            start = state.get(matrix.name)
            if start is not None and start.shape != (matrix.core[1], k):
                raise ValueError(
                    f"state: the warm start of {matrix.name!r} is {tuple(start.shape)}, "
                    f"expected {(matrix.core[1], k)}"
                )
            loaded.append(None if start is None else start.clone())
        self._start = loaded


def _entered(given: Sequence[Kept], vectors: Sequence[int]) -> Matrices:
    """The matrices as a solver takes them; of decomposed ones so many vectors are lifted."""
    return enter_matrices(list(given), vectors=vectors, check=False, traced=False)


def _values_of(a: Tensor, S: Tensor) -> SVD:
    return SVD(a.new_empty((a.shape[0], 0)), S, a.new_empty((0, a.shape[1])))


def _codes(snapshot: Snapshot) -> list[Tensor]:
    """() each: 0 for a finite matrix, else -1."""
    return list((snapshot.finite - 1.0).unbind())
