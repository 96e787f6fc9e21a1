"""Method "tracked": every step's decomposition from the last one's, with proved bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from spectral_monitor.model.matrix import Kept, Matrix
from spectral_monitor.step.cores import Cores
from spectral_monitor.step.frame import Array, MatrixRow
from spectral_monitor.step.rows import (
    RowMaker,
    Spectra,
    copied,
    leading_rows,
    rounding,
    shared_block,
)
from spectral_monitor.step.solvers import Measured
from spectral_monitor.step.views import ArrayViews, consecutive
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.svd.op import svdvals_list
from spectral_kernels.tracking.leading.op import block_width
from spectral_kernels.tracking.op import SpectrumTracker
from spectral_kernels.tracking.state import NOT_FINITE, SOLVED, WORK, sweep_dtype

__all__ = ["UNSETTLED", "TrackedSolver"]

# Above, the compiled tracker does not take the whole spectrum; and most vectors of such a matrix
# turn completely within a few steps, so that there is nothing in them to follow.
_LARGEST_WHOLE = 384

# On a GPU products are cheap beside what stands in their place, a solution from scratch that waits
# for the device. Not measured: an update of a matrix (4 n, n) is about eight products of 8 n^3
# operations in float64, 0.07 Tflop at n = 1024, one to two milliseconds at the rate of an H100's
# float64 tensor cores; it grows with n^3, and the vectors kept for it with n^2.
_LARGEST_WHOLE_ON_CUDA = 1024

UNSETTLED = ", unsettled"
"""After the work on a large matrix: its leading vectors account for less than the leading values,
by more than the tolerance. A direction is missing, or the spectrum is too flat to tell them apart
in a few iterations. The values are exact all the same."""


class _Tracked(NamedTuple):
    """One matrix after an update."""

    svd: SVD
    bounds: Tensor
    norm: Tensor
    identities: Tensor
    work: str


class TrackedSolver:
    """All singular values of every matrix, or k leading ones.

    Short sides up to 384 (on a GPU 1024) are tracked as a whole. Of larger matrices all values are
    computed from scratch at every step, and leading vectors are tracked where they are needed.
    With ``k``, the k leading triplets of every matrix that has more are tracked and nothing else
    is computed. Of decomposed matrices it is the cores that are tracked (`step.cores`).

    Args:
        matrices: those under watch.
        k: triplets of each, or None for whole spectra.
        vectors: how many leading vectors of large matrices; not used with ``k``.
        tolerance: see `spectral_kernels.SpectrumTracker`.
        needed: the matrices whose vectors `measure` will be asked for; it may ask otherwise. Of
            parts, at the end, they always are.
        parts: see `step.solvers.Solver`. Of large ones no values are computed from scratch.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        k: int | None,
        vectors: int,
        tolerance: float,
        needed: Sequence[bool],
        parts: Sequence[Matrix] = (),
    ) -> None:
        self._matrices, self._measured = matrices, [*matrices, *parts]
        self._count = len(matrices)
        self._k = k or vectors
        self._cores = Cores(self._measured, self._k, in_place=True)
        self._tolerance = tolerance
        limit = _LARGEST_WHOLE_ON_CUDA if _on_cuda(matrices) else _LARGEST_WHOLE
        most = limit if k is None else min(k, limit)
        sides = [matrix.rank for matrix in self._measured]
        whole = [i for i, side in enumerate(sides) if side <= most]
        self._leading = [i for i, side in enumerate(sides) if side > most]
        self._groups = {
            "whole": (whole, SpectrumTracker(tolerance=tolerance, reuse_buffers=True)),
            "leading": (
                self._leading,
                SpectrumTracker(self._k, tolerance=tolerance, reuse_buffers=True),
            ),
        }
        # Matrices of which all values are known, and those with k of them; parts have no rows.
        own = [i for i in self._leading if i < self._count]
        self._partial = [] if k is None else own
        self._complete = [i for i in range(self._count) if i not in set(self._partial)]
        # Those whose values are computed from scratch.
        self._replaced = own if k is None else []
        # Large matrices whose vectors are tracked.
        self._followed = self._leading
        self._follow(needed)
        self._solved: list[SVD] = []
        self._lifted: list[SVD] = []
        self._own: list[SVD] = []
        self._spectra = self._wide = self._own_spectra = Spectra([], [], [])
        self._identities: list[Tensor] = []
        self._identity_block: Array | None = None
        self._places: dict[str, slice] = {}
        self._rows = RowMaker([matrices[i] for i in self._complete], "tracked")

    @property
    def trackers(self) -> list[tuple[list[int], SpectrumTracker]]:
        """The matrices, and parts after them, that each follows by their place; it may be none."""
        return list(self._groups.values())

    @property
    def complete(self) -> list[int]:
        """Matrices of which all singular values are known."""
        return self._complete

    @property
    def partial(self) -> list[int]:
        """Those of which k are."""
        return self._partial

    @property
    def leading(self) -> list[int]:
        """Those, and parts, of which leading triplets alone are followed."""
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
        return sum(tracker.resolves for _, tracker in self._groups.values())

    def measure(self, read: Sequence[Kept], vectors: Sequence[bool]) -> Measured:
        """Bring every decomposition up to date. CPU parameters are read where they are."""
        dense = self._cores.take(read, vectors)
        if not self._leading:
            return self._measure_whole(dense)
        self._follow(vectors)
        found: dict[int, _Tracked] = {}
        for members, tracker in self._groups.values():
            if members:
                found |= zip(members, _update(tracker, [dense[i] for i in members]), strict=True)
        if self._replaced:
            self._replace_values(dense, found)
        solved = [found[i] for i in range(len(dense))]
        self._cores.rescale([x.svd for x in solved])
        tracked = self._whole(solved)
        rows = {**self._complete_rows(tracked), **self._partial_rows(solved)}
        if self._partial:
            rows = {matrix.name: rows[matrix.name] for matrix in self._matrices}
        own = tracked[: self._count]
        identities = {
            matrix.name: entry.identities.cpu().numpy().copy()
            for matrix, entry in zip(self._matrices, own, strict=True)
        }
        return Measured(
            [entry.svd for entry in own],
            [entry.svd for entry in tracked],
            [entry.work != NOT_FINITE for entry in own],
            rows,
            identities,
        )

    def _whole(self, solved: list[_Tracked]) -> list[_Tracked]:
        """Of the matrices themselves, where cores of some were solved."""
        spectra = self._cores.widen(
            Spectra([x.svd.S for x in solved], [x.bounds for x in solved], [x.norm for x in solved])
        )
        svds = self._cores.lift([x.svd for x in solved])
        return [
            x._replace(svd=svd, bounds=bounds, norm=norm)
            for x, svd, bounds, norm in zip(
                solved, svds, spectra.bounds, spectra.norms, strict=True
            )
        ]

    def _follow(self, vectors: Sequence[bool]) -> None:
        """Track vectors of large matrices only where they are needed, unless values come of it."""
        followed = [i for i in self._leading if vectors[i] or not self._replaced]
        if followed != self._followed:
            tracker = self._groups["leading"][1]
            tracker.reset()
            self._followed, self._groups["leading"] = followed, (followed, tracker)

    def _measure_whole(self, read: list[Tensor]) -> Measured:
        """The step where every matrix is tracked as a whole: results stay where they are."""
        _, tracker = self._groups["whole"]
        svds: Any = tracker.update(read)
        self._cores.rescale(svds)
        if svds is not self._solved:
            self._solved, count = svds, self._count
            bounds: Any = tracker.bounds
            norms: Any = tracker.error_norms
            self._spectra = Spectra([svd.S for svd in svds], bounds, norms)
            names: Any = tracker.identities
            self._identities = names[:count]
            self._identity_block = shared_block(self._identities)
            lengths = [len(svd.S) for svd in svds[:count]]
            self._places = consecutive([matrix.name for matrix in self._matrices], lengths)
        work = tracker.work[: self._count]
        finite = [entry != NOT_FINITE for entry in work]
        wide, lifted = self._cores.widen(self._spectra), self._cores.lift(svds)
        # The same objects for the same ones: what is behind prepares itself for them once.
        if wide is not self._wide:
            self._wide = wide
            self._own_spectra = Spectra(*(part[: self._count] for part in wide))
        if lifted is not self._lifted:
            self._lifted, self._own = lifted, lifted[: self._count]
        rows = self._rows.rows(self._own_spectra, finite, work)
        identities = copied(self._identity_block, self._identities)
        views = ArrayViews(identities, self._places)
        return Measured(self._own, lifted, finite, rows, views)

    def _complete_rows(self, tracked: Sequence[_Tracked]) -> Mapping[str, MatrixRow]:
        own = [tracked[i] for i in self._complete]
        if not own:
            return {}
        work = [entry.work for entry in own]
        spectra = Spectra(
            [entry.svd.S for entry in own],
            [entry.bounds for entry in own],
            [entry.norm for entry in own],
        )
        return self._rows.rows(spectra, [entry != NOT_FINITE for entry in work], work)

    def _partial_rows(self, solved: Sequence[_Tracked]) -> Mapping[str, MatrixRow]:
        if not self._partial:
            return {}
        own = [solved[i] for i in self._partial]
        work = [entry.work for entry in own]
        norms: Any = self._groups["leading"][1].frobenius_norms
        errors = self._cores.errors()
        return leading_rows(
            [self._matrices[i] for i in self._partial],
            "tracked",
            [entry.svd.S for entry in own],
            torch.stack(norms[: len(self._partial)]),
            finite=[entry != NOT_FINITE for entry in work],
            work=work,
            bounds=[entry.bounds for entry in own],
            errors=[errors[i] for i in self._partial],
            anew=True,
        )

    def _replace_values(self, read: Sequence[Tensor], found: dict[int, _Tracked]) -> None:
        """Give large matrices all their values, which are those of no approximate vectors."""
        values = svdvals_list([read[i] for i in self._replaced])
        shapes = [read[i].shape for i in self._replaced]
        known = [found.get(i) for i in self._replaced]
        missing = [self._missing(entry, S) for entry, S in zip(known, values, strict=True)]
        # One copy to the host for all.
        told = torch.stack(missing).tolist()
        for i, entry, S, bounds, norm, gap in zip(
            self._replaced, known, *rounding(values, shapes), told, strict=True
        ):
            if entry is None:
                none, nobody = S.new_empty((0, 0)), torch.empty(0, dtype=torch.int64)
                work = NOT_FINITE if math.isnan(gap) else WORK[SOLVED]
                found[i] = _Tracked(SVD(none, S, none), bounds, norm, nobody, work)
            else:
                work = entry.work + UNSETTLED if gap > 0 else entry.work
                found[i] = _Tracked(
                    SVD(entry.svd.U, S, entry.svd.Vh), bounds, norm, entry.identities, work
                )

    def _missing(self, known: _Tracked | None, S: Tensor) -> Tensor:
        """By how much values exceed those of the vectors beyond the tolerance; NaN for NaN."""
        if known is None:
            return torch.minimum(S[0], S.new_zeros(()))
        found = known.svd.S
        gap: Tensor = (S[: len(found)] - found).max() - self._tolerance * S[0]
        return gap

    def memory(self) -> dict[str, int]:
        """Matrix -> bytes kept between steps: the vectors that are tracked, and the results."""
        cores = self._cores.memory()
        return {
            matrix.name: self._bytes(i, matrix) + cores.get(matrix.name, 0)
            for i, matrix in enumerate(self._measured)
        }

    def _bytes(self, i: int, matrix: Matrix) -> int:
        m, n = matrix.core
        result = matrix.result_bytes
        r = min(m, n)
        if i in self._leading:
            k = min(self._k, r)
            values = result * r if i in self._replaced else 0
            if i not in self._followed:
                return values
            # The results and the block, float64 numbers and integers for each of them.
            width = block_width(self._k, m, n)
            return values + result * (k * (m + n) + n * width) + 8 * (3 * k + width)
        sweep = torch.finfo(sweep_dtype(matrix.dtype, (m, n), self._tolerance)).bits // 8
        # U, S, Vh; bounds and identities; the state.
        return result * r * (m + n + 1) + 16 * r + sweep * r * r

    def state(self) -> dict[str, Any]:
        """The vectors of all trackers, and of which matrices and parts those are."""
        trackers = {name: tracker.state_dict() for name, (_, tracker) in self._groups.items()}
        measured = [matrix.name for matrix in self._measured]
        return {**trackers, "followed": list(self._followed), "measured": measured}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the next step is then the same, bit by bit.

        Where another device draws the line between whole spectra and leading triplets elsewhere,
        or pairs have other parts, the next step starts from scratch.
        """
        # States from before there was a choice have the vectors of all, and no parts.
        followed = list(state.get("followed", self._leading))
        names = [matrix.name for matrix in self._measured]
        measured = list(state.get("measured", names[: self._count]))
        shapes = state["whole"]["shapes"]
        whole = len(self._groups["whole"][0])
        is_same = set(followed) <= set(self._leading) and measured == names
        if not is_same or (shapes and len(shapes) != whole):
            for _, tracker in self._groups.values():
                tracker.reset()
            return
        for name, (_, tracker) in self._groups.items():
            tracker.load_state_dict(state[name])
        self._followed = followed
        self._groups["leading"] = followed, self._groups["leading"][1]


def _on_cuda(matrices: Sequence[Matrix]) -> bool:
    return all(matrix.device.type == "cuda" for matrix in matrices)


def _update(tracker: Any, matrices: list[Tensor]) -> list[_Tracked]:
    svds = tracker.update(matrices)
    return [
        _Tracked(*entry)
        for entry in zip(
            svds, tracker.bounds, tracker.error_norms, tracker.identities, tracker.work, strict=True
        )
    ]
