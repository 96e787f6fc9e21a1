"""What a device found out about its own results, told to the host without waiting for it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Torch has no types for it.
_Event: Any = torch.cuda.Event


class LateFlags:
    """A truth value per matrix, on its way from a device to the host.

    Args:
        counts: how many matrices each entry of the list has.
        device: where the flags are written. On the CPU they are here at once.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self._counts = list(counts)
        on_gpu = device.type == "cuda"
        self._here = torch.zeros(sum(counts), dtype=torch.bool, pin_memory=on_gpu)
        # The same memory: reading it asks torch for nothing.
        self._told = self._here.numpy()
        self._event: Any = _Event() if on_gpu else None
        # Copies go to the current stream of the device of the flags, events to that of the current
        # device.
        self._there: Any = torch.cuda.device(device) if on_gpu else contextlib.nullcontext()
        self._on_their_way = False

    def send(self, flags: Tensor) -> None:
        """Have a copy made when ``flags`` (sum of counts,) bool are written.

        Flags that are still on their way are not overtaken: a host that runs far ahead of its
        device would else never see any arrive.
        """
        if self._on_their_way:
            return
        with self._there:
            if self._is_captured():
                return
            self._here.copy_(flags, non_blocking=True)
            if self._event is not None:
                self._event.record()
        self._on_their_way = True

    def heard(self) -> list[list[int]]:
        """Return for each entry the indices with a flag, none where no flags have arrived."""
        nothing: list[list[int]] = [[] for _ in self._counts]
        if not self._on_their_way:
            return nothing
        with self._there:
            # A query would break a capture.
            if self._is_captured() or (self._event is not None and not self._event.query()):
                return nothing
        self._on_their_way = False
        if not self._told.any():
            return nothing
        ends = itertools.pairwise((0, *itertools.accumulate(self._counts)))
        return [self._told[start:end].nonzero()[0].tolist() for start, end in ends]

    def _is_captured(self) -> bool:
        return self._event is not None and torch.cuda.is_current_stream_capturing()
