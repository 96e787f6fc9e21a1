"""Order on a CUDA device without waiting for it: a second stream, events, graphs; and on the CPU.

Two implementations of one interface. `HostStreams` does everything at once, in the order in which
it is issued, so that what runs on a GPU runs on the CPU too, in tests above all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from spectral_monitor.device.capture import captured
from torch import Tensor


class Mark(Protocol):
    """A point in the work of a stream."""

    def arrived(self) -> bool:
        """Whether all work before the mark is done."""
        ...

    def wait(self) -> None:
        """Return when all work before the mark is done."""
        ...

    def seconds_since(self, earlier: Any) -> float:
        """Time on the device from another mark to this one; both have arrived."""
        ...


class Streams(Protocol):
    """The stream that training uses, which is the current one, and a second one aside."""

    def aside(self) -> AbstractContextManager[Any]:
        """Inside, work goes to the second stream."""
        ...

    def mark(self) -> Mark:
        """Mark where the current stream is."""
        ...

    def follow(self, mark: Mark) -> None:
        """Let the current stream do all work from now on after the mark. The host goes on."""
        ...

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work, without doing it; what comes back does it, on the current stream."""
        ...

    def landing(self, length: int) -> Tensor:
        """(length,) float64 on the host, for copies that nobody waits for."""
        ...


class CudaStreams:
    """Two streams of a CUDA device.

    Args:
        device: with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._recording: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def aside(self) -> AbstractContextManager[Any]:
        """See `Streams`."""
        return torch.cuda.stream(self._side)

    def mark(self) -> Mark:
        """See `Streams`."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return _CudaMark(event)

    def follow(self, mark: Any) -> None:
        """See `Streams`."""
        torch.cuda.current_stream(self._device).wait_event(mark.event)

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Streams`."""
        with torch.cuda.device(self._device):
            return captured(work, self._device, self._recording)

    def landing(self, length: int) -> Tensor:
        """See `Streams`."""
        return torch.empty(length, dtype=torch.float64, pin_memory=True)


class _CudaMark:
    def __init__(self, event: Any) -> None:
        self.event = event

    def arrived(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Any) -> float:
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class HostStreams:
    """The CPU in place of two streams: all work is done when it is issued."""

    def aside(self) -> AbstractContextManager[Any]:
        """See `Streams`."""
        return contextlib.nullcontext()

    def mark(self) -> Mark:
        """See `Streams`."""
        return _HostMark()

    def follow(self, mark: Mark) -> None:
        """See `Streams`."""

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Streams`."""
        return work

    def landing(self, length: int) -> Tensor:
        """See `Streams`."""
        return torch.empty(length, dtype=torch.float64)


class _HostMark:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def arrived(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Any) -> float:
        return float(self._at - earlier._at)
