"""Many tensors on one device, followed from update to update: whole spectra or leading triplets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spectral_kernels.runtime.program.op import Call
from spectral_kernels.tracking.flags import LateFlags
from spectral_kernels.tracking.leading.state import LeadingStates
from spectral_kernels.tracking.plan import Plan, States
from spectral_kernels.tracking.results import Tracked
from spectral_kernels.tracking.whole.state import WholeStates


class Tracker:
    """The part of ``SpectrumTracker`` behind its checks and its kinds of arrays.

    Args:
        k, tolerance, reuse_buffers: as for ``SpectrumTracker``.
    """

    def __init__(self, k: int | None, tolerance: float, *, reuse_buffers: bool) -> None:
        self.k, self.tolerance, self.reuse_buffers = k, tolerance, reuse_buffers
        self.reset()

    def reset(self) -> None:
        """Forget vectors and counts."""
        self._states = self._no_states()
        self._plan: Plan | None = None
        # The tensors that the plan was just found to fit.
        self._checked: list[Tensor] | None = None
        self._flags: LateFlags | None = None
        self._resolves = 0

    def _no_states(self) -> States:
        return WholeStates() if self.k is None else LeadingStates(self.k)

    @property
    def resolves(self) -> int:
        """How many matrices were solved anew; on a GPU, looking waits for it."""
        return self._resolves + self._states.late_resolves

    def is_prepared_for(self, tensors: list[Tensor]) -> bool:
        """Whether ``tensors`` are those of the last update, in the same memory."""
        fits = self._plan is not None and self._plan.fits(tensors)
        self._checked = tensors if fits else None
        return fits

    def update(self, tensors: list[Tensor]) -> list[Tracked]:
        """Return the triplets of each tensor (..., m, n), with its batch dimensions."""
        if not len(self._states):
            self._states.begin(tensors, self.tolerance)
        plan = self._prepared(tensors)
        before = self._states.warm()
        if plan.lost is None:
            results = plan.run()
            self._count(before, results)
            return results
        # Reading what was done would wait for the device.
        if self._flags is None:
            self._flags = LateFlags(plan.counts, plan.lost.device)
        self._resolves += plan.resolve(self._flags.heard())
        results = plan.run()
        self._flags.send(plan.lost)
        return results if self.reuse_buffers else [tracked.copied() for tracked in results]

    def _prepared(self, tensors: list[Tensor]) -> Plan:
        plan = self._plan
        fits = plan is not None and (tensors is self._checked or plan.fits(tensors))
        if plan is None or not (fits or plan.rebind(tensors)):
            plan = Plan(tensors, self._states, self.tolerance)
            self._flags = None
        self._checked = None
        # The states of updates that do not wait live in their plan.
        self._plan = plan if self.reuse_buffers or plan.lost is not None else None
        return plan

    def _count(self, before: list[list[bool]], results: list[Tracked]) -> None:
        """Count what was solved anew, of matrices that had vectors before."""
        for warm, tracked in zip(before, results, strict=True):
            work = list(tracked.work)
            if self._states.solved in work:
                self._resolves += sum(
                    was and done == self._states.solved
                    for was, done in zip(warm, work, strict=True)
                )

    @property
    def calls(self) -> list[Call] | None:
        """What the next update of the same memory asks of the compiled module, if that is all."""
        return None if self._plan is None else self._plan.calls

    def run(self) -> None:
        """Update the matrices of the last update, as they are now."""
        assert self._plan is not None
        self._plan.run()

    def settle(self) -> bool:
        """After the calls were run: count, and return whether `calls` are others now."""
        assert self._plan is not None
        before = self._states.warm()
        changed, solved = self._plan.settle()
        if solved:
            self._count(before, self._plan.results)
        return changed

    def resolve(self, which: Sequence[Sequence[int]]) -> None:
        """Solve matrices anew for the next update to start from; see ``SpectrumTracker``.

        Raises:
            ValueError: entries or indices that do not fit the matrices.
        """
        counts = [len(warm) for warm in self._states.warm()]
        if len(which) != len(counts):
            raise ValueError(f"which has {len(which)} entries; expected {len(counts)}, as A has")
        for i, (indices, count) in enumerate(zip(which, counts, strict=True)):
            wrong = [j for j in indices if not 0 <= j < count]
            if wrong:
                raise ValueError(
                    f"which[{i}] has the index {wrong[0]}; expected 0 to {count - 1}, the matrices "
                    "of the flattened batch"
                )
        if self._plan is not None:
            self._resolves += self._plan.resolve(which)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs: of the states, and ``resolves``."""
        return {**self._states.state_dict(), "resolves": self.resolves}

    def load_state_dict(self, state: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
        """Go on from a ``state_dict()`` of matrices of these shapes.

        Raises:
            ValueError: another k, or vectors that do not fit the shapes or are not orthonormal.
        """
        states = self._no_states()
        states.load_state_dict(state, shapes)
        self.reset()
        self._states, self._resolves = states, int(state["resolves"])


class PreparedUpdate:
    """An update of a tracker, see `SpectrumTracker.prepared`.

    Args:
        tracker: whose matrices lie where they lay; what it returned is overwritten.
        codes: (...,) float64 of each entry of its list, where an update leaves what it did.
    """

    def __init__(self, tracker: Tracker, codes: list[Tensor]) -> None:
        self._tracker, self.codes = tracker, codes

    @property
    def calls(self) -> list[Call] | None:
        """What a run asks of the compiled module."""
        return self._tracker.calls

    def run(self) -> None:
        """Update the tracker's matrices as they are now."""
        self._tracker.run()

    def settle(self) -> bool:
        """To be called after a run: whether ``calls`` are others from now on."""
        return self._tracker.settle()
