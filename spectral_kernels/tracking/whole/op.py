"""The part of ``SpectrumTracker`` that follows whole spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.runtime.program.op import Call
from spectral_kernels.tracking.bounds import departure_bound
from spectral_kernels.tracking.late import LateFlags
from spectral_kernels.tracking.state import SOLVED, WORK, State, Tracked, sweep_dtype
from spectral_kernels.tracking.whole.plan import Plan, copied


class WholeTracker:
    """All singular values of each of many tensors on one device, from update to update.

    Args:
        tolerance, reuse_buffers: as for ``SpectrumTracker``.
    """

    def __init__(self, tolerance: float, *, reuse_buffers: bool) -> None:
        self.tolerance = tolerance
        self.reuse_buffers = reuse_buffers
        self.reset()

    def reset(self) -> None:
        """Forget vectors and counts."""
        self._states: list[State] = []
        self._plan: Plan | None = None
        # The tensors that the plan was just found to fit.
        self._checked: list[Tensor] | None = None
        self._flags: LateFlags | None = None
        self._resolves = 0

    @property
    def resolves(self) -> int:
        """How many matrices were solved anew; on a GPU, looking waits for it."""
        late = [state.late_resolves for state in self._states]
        return self._resolves + sum(int(count) for count in late if count is not None)

    def is_prepared_for(self, tensors: list[Tensor]) -> bool:
        """Whether these are those of the last update, in the same memory."""
        fits = self._plan is not None and self._plan.fits(tensors)
        self._checked = tensors if fits else None
        return fits

    def update(self, tensors: list[Tensor]) -> list[Tracked]:
        """Return the decomposition of each tensor (..., m, n), with its batch dimensions."""
        if not self._states:
            self._states = [
                State.cold(
                    math.prod(A.shape[:-2]), min(A.shape[-2:]),
                    sweep_dtype(A.dtype, (A.shape[-2], A.shape[-1]), self.tolerance), A.device,
                )
                for A in tensors
            ]  # fmt: skip
        before = [warm for state in self._states for warm in state.warm]
        plan = self._prepared(tensors)
        if self._flags is not None:
            plan.resolve(self._flags.heard())
        results = plan.run()
        if plan.lost is not None:
            # Reading what was done would wait for the device.
            if self._flags is None:
                self._flags = LateFlags(plan.counts, plan.lost.device)
            self._flags.send(plan.lost)
            return results if self.reuse_buffers else [copied(tracked) for tracked in results]
        self._count(before, results)
        return results

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
        before = [warm for state in self._states for warm in state.warm]
        changed, solved = self._plan.settle()
        if solved:
            self._count(before, self._plan.results)
        return changed

    def _count(self, before: list[bool], results: list[Tracked]) -> None:
        """Count what was solved anew, of matrices that had vectors before."""
        work = [entry for tracked in results for entry in tracked.work]
        self._resolves += sum(
            warm and entry == WORK[SOLVED] for warm, entry in zip(before, work, strict=True)
        )

    def _prepared(self, tensors: list[Tensor]) -> Plan:
        plan = self._plan
        fits = plan is not None and (tensors is self._checked or plan.fits(tensors))
        if plan is None or not (fits or plan.rebind(tensors)):
            plan = Plan(tensors, self._states, self.tolerance)
        self._checked = None
        # The states of updates that do not wait live in their plan.
        self._plan = plan if self.reuse_buffers or plan.lost is not None else None
        return plan

    def resolve(self, which: Sequence[Sequence[int]]) -> None:
        """Solve matrices anew for the next update to start from; see ``SpectrumTracker``.

        Raises:
            ValueError: entries or indices that do not fit the matrices.
        """
        counts = [len(state.warm) for state in self._states]
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
            self._plan.resolve(which)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs.

        Per entry of the list ``vectors`` (B, r, r), ``drift`` (B,), ``names`` (B, r + 1) and
        ``warm`` (one truth value per matrix); and ``resolves``.
        """
        return {
            "vectors": [state.vectors.clone() for state in self._states],
            "drift": [state.drift.to("cpu", copy=True) for state in self._states],
            "names": [state.names.to("cpu", copy=True) for state in self._states],
            "warm": [state.started() for state in self._states],
            "resolves": self.resolves,
        }

    def load_state_dict(self, state: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
        """Go on from a ``state_dict()`` of matrices of these shapes.

        Raises:
            ValueError: vectors that do not fit the shapes or are not orthonormal.
        """
        parts = (state["vectors"], state["drift"], state["names"], state["warm"])
        states = [
            _loaded(f"[{i}]", shape, *part)
            for i, (shape, *part) in enumerate(zip(shapes, *parts, strict=True))
        ]
        self.reset()
        self._states, self._resolves = states, int(state["resolves"])


def _loaded(
    where: str,
    shape: tuple[int, ...],
    V: Tensor,
    drift: Tensor,
    names: Tensor,
    warm: Sequence[bool],
) -> State:
    """Return the state of one entry of the list, checked."""
    count, r = math.prod(shape[:-2]), min(shape[-2:])
    found = (tuple(V.shape), tuple(drift.shape), tuple(names.shape), len(warm))
    if found != ((count, r, r), (count,), (count, r + 1), count):
        raise ValueError(
            f"vectors{where}, drift{where}, names{where} and warm{where} have the shapes {found}; "
            f"expected {((count, r, r), (count,), (count, r + 1), count)} for a matrix of shape "
            f"{shape}"
        )
    V = V.detach()
    state = State(
        V.to(torch.float32 if V.dtype == torch.float32 else torch.float64, copy=True).contiguous(),
        drift.detach().to("cpu", torch.float64, copy=True),
        names.detach().to("cpu", torch.int64, copy=True).contiguous(),
        [bool(x) for x in warm],
    )
    for j in (j for j, is_warm in enumerate(warm) if is_warm):
        measured = departure_bound(state.vectors[j].double())
        # False for NaN, too.
        if not measured <= 0.1:
            raise ValueError(
                f"vectors{where}[{j}] has columns that are not orthonormal; expected vectors from "
                "state_dict()"
            )
        state.drift[j] = max(float(state.drift[j]), measured)
    return state
