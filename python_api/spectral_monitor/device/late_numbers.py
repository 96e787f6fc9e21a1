"""The numbers of a frame that a step left on its way from the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spectral_monitor.device.runner import Reading
from spectral_monitor.step.unpacking import Unpacking


class LateNumbers:
    """Fields of a frame whose numbers are on their way, see `spectral_monitor.step.frame.Late`.

    Args:
        reading, unpacking: the numbers, and what they mean.
        anew: matrices that were solved anew before the step.
        scalars: the caller's numbers by name, None for those that come with the reading.
    """

    def __init__(
        self,
        reading: Reading,
        unpacking: Unpacking,
        anew: Sequence[int],
        scalars: Mapping[str, float | None],
    ) -> None:
        self._reading, self._unpacking = reading, unpacking
        self._anew, self._scalars = anew, scalars
        self._host_seconds, self._elapsed_seconds = 0.0, math.nan

    @property
    def arrived(self) -> bool:
        """Whether looking at the frame waits for nothing."""
        return self._reading.arrived

    def took(self, host_seconds: float, elapsed_seconds: float) -> None:
        """What the step cost the host, and how long ago the last frame was."""
        self._host_seconds, self._elapsed_seconds = host_seconds, elapsed_seconds

    def fields(self) -> dict[str, Any]:
        """Field -> value, see `spectral_monitor.step.frame.Late`."""
        numbers = self._reading.numbers()
        late = iter(self._unpacking.scalars(numbers))
        # Host and device work side by side: what holds up training is the slower of the two.
        seconds = max(self._host_seconds, self._reading.seconds())
        return {
            "scalars": {n: next(late) if x is None else x for n, x in self._scalars.items()},
            "overhead": seconds / self._elapsed_seconds,
            **self._unpacking.fields(numbers, self._anew),
        }
