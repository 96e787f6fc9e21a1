"""Updates of tensors with any batch dimensions, prepared for the memory they lie in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from spectral_kernels.runtime.memory import Memory, flattened, is_view
from spectral_kernels.runtime.program.op import Call
from spectral_kernels.tracking.leading.state import LeadingStates
from spectral_kernels.tracking.results import LateUpdates, Tracked, Updates
from spectral_kernels.tracking.whole.state import WholeStates

States: TypeAlias = WholeStates | LeadingStates
"""Vectors carried from update to update, an entry for each tensor of a list."""


class Plan:
    """The updates of tensors that lie in the same memory each time."""

    def __init__(self, tensors: list[Tensor], states: States, tolerance: float) -> None:
        self._filled = [i for i, A in enumerate(tensors) if A.numel()]
        flat = self._bind(tensors)
        self._last: list[Tracked] = []
        # Those of the others come with the first run.
        self.results: list[Any] = [None if A.numel() else states.nothing(A) for A in tensors]
        self._updates: Updates | None = None
        self._late: LateUpdates | None = None
        if self._filled:
            self._updates = states.prepare(flat, self._filled, tolerance)
            if isinstance(self._updates, LateUpdates):
                self._late = self._updates

    def _bind(self, tensors: list[Tensor]) -> list[Tensor]:
        """Note where tensors lie, and return those with entries as batches (B, m, n)."""
        self._memory = Memory(tensors)
        flat = [flattened(tensors[i]) for i in self._filled]
        # A batch that cannot be flattened in place was copied: such a plan is for once.
        self._in_place = all(
            is_view(A, tensors[i]) for i, A in zip(self._filled, flat, strict=True)
        )
        return flat

    @property
    def lost(self) -> Tensor | None:
        """As of `LateUpdates`; None where updates wait, and nothing is lost."""
        return None if self._late is None else self._late.lost

    @property
    def counts(self) -> list[int]:
        """How many entries of ``lost`` each tensor has."""
        return [math.prod(A.shape[:-2]) if A.numel() else 0 for A in self._memory.tensors]

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether ``tensors`` lie where those of the plan lie."""
        return self._in_place and self._memory.is_of(tensors)

    def rebind(self, tensors: list[Tensor]) -> bool:
        """Take ``tensors`` in place of the last ones; False where that needs another plan."""
        if self._late is None or not self._memory.is_like(tensors):
            return False
        self._late.rebind(self._bind(tensors))
        return True

    def resolve(self, which: Sequence[Sequence[int]]) -> int:
        """Solve matrices anew for the next run, an entry of indices for each tensor.

        Returns what `LateUpdates.resolve` does.
        """
        if self._late is None or not any(which):
            return 0
        return self._late.resolve([which[i] for i in self._filled])

    @property
    def calls(self) -> list[Call] | None:
        """What a run asks of the compiled module; None where that is not all."""
        return getattr(self._updates, "calls", None) if self._in_place else None

    def settle(self) -> tuple[bool, bool]:
        """After ``calls`` were run: whether they are others now, and whether one was solved."""
        updates: Any = self._updates
        settled: tuple[bool, bool] = updates.settle()
        return settled

    def run(self) -> list[Tracked]:
        """Update, in order; the results of the run before may be overwritten."""
        tracked = self._updates.run() if self._updates is not None else []
        # The same buffers as last time have the same views.
        if not self._last or any(a is not b for a, b in zip(tracked, self._last, strict=True)):
            # A new list, by which the caller sees that the places are new.
            self.results = list(self.results)
            for i, result in zip(self._filled, tracked, strict=True):
                self.results[i] = result.shaped(*self._memory.tensors[i].shape[:-2])
            self._last = tracked
        return self.results
