"""Where matrices lie from step to step, and memory for those that do not stay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spectral_monitor.model.matrix import Kept, Matrix, tensors_of, with_tensors
from torch import Tensor

# A new program, recorded, takes some hundred times as long as a copy of one matrix.
_LONG = 100


class Places:
    """Gives each matrix a place that seldom changes.

    Mostly that is where it is. One that has no view, which `Matrix.read` copies elsewhere every
    time, and one that moves twice within a hundred steps are copied to memory of their own at
    every step, a launch for each.

    Args:
        matrices: those under watch, and parts.
    """

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        # Of a decomposed one each factor has a place.
        self._owners = [(m, part) for m in matrices for part in range(3 if m.is_decomposed else 1)]
        self._steps = 0
        self._last: list[int | None] = [None] * len(self._owners)
        self._moved_at = [-_LONG] * len(self._owners)
        self.memory: dict[int, Tensor] = {}
        """Index of a matrix, counting factors -> the memory that it is copied to."""

    def settle(self, given: Sequence[Kept]) -> list[Kept]:
        """The given matrices, each where it lies or copied to its place."""
        self._steps += 1
        tensors = [x for kept in given for x in tensors_of(kept)]
        return with_tensors(given, [self._settle(i, x) for i, x in enumerate(tensors)])

    def _settle(self, i: int, view: Tensor) -> Tensor:
        memory = self.memory.get(i)
        if memory is None and view.data_ptr() == self._last[i]:
            return view
        if memory is None and not self._wanders(i, view):
            self._last[i] = view.data_ptr()
            return view
        if memory is None or memory.dtype != view.dtype or memory.device != view.device:
            # In the parameter's dtype: it is the snapshot that widens.
            memory = self.memory[i] = torch.empty(view.shape, dtype=view.dtype, device=view.device)
        return memory.copy_(view)

    def _wanders(self, i: int, view: Tensor) -> bool:
        """Whether a matrix that is not where it was will be elsewhere again soon."""
        matrix, part = self._owners[i]
        whole = tensors_of(matrix.get())[part]
        if view.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            return True
        if self._last[i] is None:
            return False
        before, self._moved_at[i] = self._moved_at[i], self._steps
        return self._steps - before < _LONG
