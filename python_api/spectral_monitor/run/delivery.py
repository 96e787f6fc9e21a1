"""Frames on their way to where they are kept, in order, each when its numbers have arrived."""

from __future__ import annotations

from collections import deque

from spectral_monitor.run.sinks import Sink
from spectral_monitor.step.frame import SpectralFrame

__all__ = ["Delivery"]


class Delivery:
    """Hands frames to sinks.

    Args:
        sinks: each gets every frame.
    """

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks
        self._waiting: deque[SpectralFrame] = deque()

    @property
    def is_recording(self) -> bool:
        """Whether there is a sink that is not closed."""
        return bool(self._sinks)

    def take(self, frame: SpectralFrame) -> None:
        """Write a frame as soon as its numbers are here: now, or at a later call."""
        if self._sinks:
            self._waiting.append(frame)
        self.deliver()

    def deliver(self, *, wait: bool = False) -> None:
        """Write what has arrived; with ``wait`` everything, which waits for the device."""
        while self._waiting and (wait or self._waiting[0].arrived):
            frame = self._waiting.popleft()
            for sink in self._sinks:
                sink.write(frame)

    def close(self) -> None:
        """Write everything, and close the sinks; frames that come later go nowhere."""
        try:
            self.deliver(wait=True)
        finally:
            sinks, self._sinks = self._sinks, []
            self._waiting.clear()
            for sink in sinks:
                sink.close()
