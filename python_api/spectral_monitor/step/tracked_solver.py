"""Method "tracked": every step's decomposition from the last one's, with proved bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from spectral_monitor.model.matrix import Kept, Matrix
from spectral_monitor.step.solvers import Solved
from spectral_monitor.step.spectra import rounding

from spectral_kernels.entry.factors import enter_matrices
from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.runtime.limits import DIRECT_SIDE
from spectral_kernels.svd.op import svdvals_list
from spectral_kernels.tracking.leading.state import WORK as LEADING_WORK
from spectral_kernels.tracking.leading.state import block_width
from spectral_kernels.tracking.op import SpectrumTracker
from spectral_kernels.tracking.results import SOLVED
from spectral_kernels.tracking.whole.state import WORK, sweep_dtype

# Above, the compiled tracker does not take the whole spectrum; and most vectors of such a matrix
# turn completely within a few steps, so that there is nothing in them to follow.
_LARGEST_WHOLE = DIRECT_SIDE

# On a GPU products are cheap beside what stands in their place, a solution from scratch that waits
# for the device. Not measured: an update of a matrix (4 n, n) is about eight products of 8 n^3
# operations in float64, 0.07 Tflop at n = 1024, one to two milliseconds at the rate of an H100's
# float64 tensor cores; it grows with n^3, and the vectors kept for it with n^2.
_LARGEST_WHOLE_ON_CUDA = 1024

UNSETTLED = ", unsettled"
"""After the work on a large matrix: its leading vectors account for less than the leading values,
by more than the tolerance. A direction is missing, or the spectrum is too flat to tell them apart
in a few iterations. The values are exact all the same."""


class TrackedSolver:
    """All singular values of every matrix, or k leading ones.

    Short sides up to 384 (on a GPU 1024) are tracked as a whole. Of larger matrices all values are
    computed from scratch at every step, and leading vectors are tracked where they are needed.
    With ``k``, the k leading triplets of every matrix that has more are tracked and nothing else
    is computed. Of decomposed matrices it is the cores that are tracked (`entry.core`).

    Args:
        matrices: those under watch.
        k: triplets of each, or None for whole spectra.
        vectors: how many leading vectors of large matrices; not used with ``k``.
        tolerance: see `spectral_kernels.SpectrumTracker`.
        needed: of which matrices and parts vectors are asked for.
        parts: see `spectral_monitor.step.solvers.Solver`. Of large ones no values are computed from
            scratch.
    """

    method = "tracked"

    def __init__(
        self,
        matrices: Sequence[Matrix],
        k: int | None,
        vectors: int,
        tolerance: float,
        needed: Sequence[bool],
        parts: Sequence[Matrix] = (),
    ) -> None:
        self._measured = [*matrices, *parts]
        self._k = k or vectors
        self._tolerance = tolerance
        self._needed = list(needed)
        limit = _LARGEST_WHOLE_ON_CUDA if _on_cuda(matrices) else _LARGEST_WHOLE
        most = limit if k is None else min(k, limit)
        sides = [matrix.rank for matrix in self._measured]
        whole = [i for i, side in enumerate(sides) if side <= most]
        self._leading = [i for i, side in enumerate(sides) if side > most]
        self.in_place = not self._leading
        # Parts have no rows.
        own = [i for i in self._leading if i < len(matrices)]
        self.partial = [] if k is None else own
        self.complete = [i for i in range(len(matrices)) if i not in set(self.partial)]
        # Those whose values are computed from scratch, and those of large ones that are followed:
        # where vectors are needed, or values come of it.
        self._replaced = set(own if k is None else [])
        self._followed = [i for i in self._leading if needed[i] or i not in self._replaced]
        self.trackers = [
            (whole, SpectrumTracker(tolerance=tolerance, reuse_buffers=True)),
            (self._followed, SpectrumTracker(self._k, tolerance=tolerance, reuse_buffers=True)),
        ]
        """Each tracker with the indices of its matrices, and of parts after them; maybe none."""

    @property
    def leading(self) -> list[int]:
        """Matrices and parts of which leading triplets alone are followed."""
        return self._leading

    @property
    def k(self) -> int:
        """How many triplets of the partial ones, or vectors of large ones, are followed."""
        return self._k

    @property
    def tracks_all_values(self) -> bool:
        """Whether no value is computed from scratch at every step."""
        return not self._replaced

    @property
    def resolves(self) -> int:
        """How many matrices were solved anew so far because tracking lost them.

        Their first solution does not count, nor do values that are always from scratch.
        """
        return sum(tracker.resolves for _, tracker in self.trackers)

    def work_names(self, i: int) -> Sequence[str]:
        """See `spectral_monitor.step.solvers.Solver`."""
        if i not in self._leading:
            return WORK
        if i not in self._replaced:
            return LEADING_WORK
        return (*LEADING_WORK, *(work + UNSETTLED for work in LEADING_WORK))

    def update(self, given: Sequence[Kept]) -> list[Solved]:
        """Bring every decomposition up to date. CPU parameters are read where they are."""
        solved_by_place: dict[int, Solved] = {}
        for members, tracker in self.trackers:
            if members:
                matrices = [given[i] for i in members]
                solved = _updated(tracker, matrices, [self._k * self._needed[i] for i in members])
                solved_by_place |= zip(members, solved, strict=True)
        if self._replaced:
            self._replace_values(given, solved_by_place)
        return [solved_by_place[i] for i in range(len(given))]

    def prepared(self) -> Any:
        """See `spectral_monitor.step.solvers.Solver`: where all are tracked as wholes, on a CPU."""
        return None if self._leading else self.trackers[0][1].prepared()

    def resolve(self, which: Sequence[int]) -> None:
        """Solve these matrices anew, from what the last update was given. Waits for the device."""
        for members, tracker in self.trackers:
            if not set(members).isdisjoint(which):
                tracker.resolve([[0] if i in which else [] for i in members])

    def _replace_values(self, given: Sequence[Kept], solved: dict[int, Solved]) -> None:
        """Give large matrices all their values, which are those of no approximate vectors."""
        replaced = sorted(self._replaced)
        matrices = enter_matrices([given[i] for i in replaced], check=False, traced=False)
        core_values = svdvals_list(matrices.tensors)
        spectra = rounding(core_values, [tuple(x.shape) for x in matrices.tensors])
        values = matrices.whole(core_values)
        bounds = matrices.bounded(spectra.bounds, core_values)
        norms = matrices.bounded(spectra.norms, core_values)
        for i, S, radii, norm in zip(replaced, values, bounds, norms, strict=True):
            tracked = solved.get(i)
            if tracked is None:
                none, nobody = S.new_empty((0, 0)), torch.empty(0, dtype=torch.int64)
                code = torch.where(S[0].isnan(), -1, SOLVED)
                solved[i] = Solved(SVD(none, S, none), radii, norm, code, identities=nobody)
                continue
            # By how much values exceed those of the vectors beyond the tolerance.
            leading = tracked.svd.S
            gap = (S[: len(leading)] - leading).max() - self._tolerance * S[0]
            code = torch.where(gap > 0, tracked.code + len(LEADING_WORK), tracked.code)
            svd = SVD(tracked.svd.U, S, tracked.svd.Vh)
            solved[i] = Solved(
                svd, radii, norm, code, identities=tracked.identities, lost=tracked.lost
            )

    def memory(self) -> dict[str, int]:
        """Matrix -> bytes kept between steps: the vectors that are tracked, and the results; of a
        decomposed one those of its core too, which is what is tracked."""
        return {
            matrix.name: self._bytes(i, matrix) + self._core_bytes(i, matrix)
            for i, matrix in enumerate(self._measured)
        }

    def _core_bytes(self, i: int, matrix: Matrix) -> int:
        if not matrix.is_decomposed:
            return 0
        (m, n), (p, q) = matrix.shape, matrix.core
        # A side that is no longer than k is its own basis.
        lifted = (m if p < m else 0) + (n if q < n else 0)
        vectors = min(self._k, matrix.rank) if self._needed[i] else 0
        return matrix.result_bytes * (p * q + vectors * lifted)

    def _bytes(self, i: int, matrix: Matrix) -> int:
        m, n = matrix.core
        result = matrix.result_bytes
        r = min(m, n)
        if i in self._leading:
            k = min(self._k, r)
            if i not in self._followed:
                return 0
            # The results and the block, float64 numbers and integers for each of them.
            width = block_width(self._k, m, n)
            return result * (k * (m + n) + n * width) + 8 * (3 * k + width)
        sweep = torch.finfo(sweep_dtype(matrix.dtype, (m, n), self._tolerance)).bits // 8
        # U, S, Vh; bounds and identities; the state.
        return result * r * (m + n + 1) + 16 * r + sweep * r * r

    def state(self) -> dict[str, Any]:
        """The vectors of all trackers, and of which matrices and parts those are."""
        whole, leading = (tracker.state_dict() for _, tracker in self.trackers)
        measured = [matrix.name for matrix in self._measured]
        return {
            "whole": whole, "leading": leading, "followed": list(self._followed),
            "measured": measured,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the next step is then the same, bit by bit.

        Where another device draws the line between whole spectra and leading triplets elsewhere,
        or pairs have other parts, the next step starts from scratch.
        """
        shapes = state["whole"]["shapes"]
        names = [matrix.name for matrix in self._measured]
        (whole, tracker), (_, leading) = self.trackers
        tracker.reset()
        leading.reset()
        if state["measured"] != names or (shapes and len(shapes) != len(whole)):
            return
        tracker.load_state_dict(state["whole"])
        if state["followed"] == self._followed:
            leading.load_state_dict(state["leading"])


def _on_cuda(matrices: Sequence[Matrix]) -> bool:
    return all(matrix.device.type == "cuda" for matrix in matrices)


def _updated(
    tracker: SpectrumTracker, matrices: list[Kept], vectors: Sequence[int]
) -> list[Solved]:
    svds = tracker.update(matrices, vectors=vectors)
    norms: Any = tracker.error_norms if tracker.k is None else tracker.frobenius_norms
    bounds: Any = tracker.bounds
    entry = tracker.prepared()
    codes: Any = tracker.codes if entry is None else entry.codes
    others: Any = (tracker.identities, tracker.lost)
    errors: Any = [None] * len(matrices)
    if tracker.k is not None and any(isinstance(x, Decomposed) for x in matrices):
        errors = tracker.core_errors
        # The rows of leading values add them to what follows from these.
        finite = zip(bounds, errors, strict=True)
        bounds = [torch.where(e.isfinite(), b - e, b) for b, e in finite]
    return [
        Solved(*numbers)
        for numbers in zip(svds, bounds, norms, codes, errors, *others, strict=True)
    ]
