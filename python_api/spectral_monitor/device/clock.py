"""How long training steps take on a device, told to a cadence.

The host is far ahead of a GPU at times, so that its clock says little about a single step. Marks
between the device's work say when it was there; they are read when they have arrived.
"""

from __future__ import annotations

from collections import deque

from spectral_monitor.cadence import Cadence
from spectral_monitor.device.streams import Mark


class DeviceClock:
    """Times training between the marks of two steps of a monitor.

    Args:
        cadence: is told seconds per training step, some steps late.
    """

    def __init__(self, cadence: Cadence) -> None:
        self._cadence = cadence
        self._left: tuple[int, Mark] | None = None
        self._spans: deque[tuple[Mark, Mark, int]] = deque()

    def enter(self, number: int, mark: Mark) -> None:
        """The training step before ``number`` ends at this mark."""
        if self._left is not None and number > self._left[0]:
            self._spans.append((self._left[1], mark, number - self._left[0]))
        while self._spans and self._spans[0][1].arrived():
            begin, end, steps = self._spans.popleft()
            self._cadence.trained(end.seconds_since(begin) / steps)

    def leave(self, number: int, mark: Mark) -> None:
        """The next training step begins at this mark."""
        self._left = (number, mark)

    def interrupt(self) -> None:
        """The time until the next mark is not that of training."""
        self._left = None
