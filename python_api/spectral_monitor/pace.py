"""The times of a monitor's steps: what a cadence is told of them, and what a frame says it took."""

from __future__ import annotations

import math
import time

from spectral_monitor.cadence import Cadence
from spectral_monitor.device.late_numbers import LateNumbers
from spectral_monitor.device.step import DeviceStep
from spectral_monitor.step.frame import SpectralFrame


class Pace:
    """Times the steps of a monitor, those of its host and those of a device.

    A step calls `enter`; then `leave`, or where it is measured `measured` and, when the frame is
    written, `delivered`.

    Args:
        cadence: is told what training steps and measurements take.
        device: takes times there.
    """

    def __init__(self, cadence: Cadence, device: DeviceStep) -> None:
        self._cadence, self._device = cadence, device
        self._entered = math.nan
        self._last_frame_at = math.nan
        self._spent = 0.0

    def enter(self, number: int) -> None:
        """The training step before this one is over."""
        self._entered = time.perf_counter()
        self._cadence.enter(number, self._entered)
        self._device.enter(number)

    def leave(self, number: int) -> None:
        """Nothing is measured; the next training step comes."""
        self._cadence.leave(number, self._entered)
        self._device.left(number)

    def interrupt(self) -> None:
        """What follows is not training."""
        self._cadence.interrupt()
        self._device.interrupt()

    def measured(self, frame: SpectralFrame, late: LateNumbers | None) -> None:
        """A frame is there, or on its way; say in it what share of the time it took."""
        now = time.perf_counter()
        host, elapsed = self._spent + now - self._entered, now - self._last_frame_at
        if late is None:
            frame.overhead = host / elapsed
        else:
            late.took(host, elapsed)
        self._last_frame_at = now

    def delivered(self, number: int, late: LateNumbers | None) -> None:
        """It is written; the next training step comes."""
        # Writing comes after the frame is complete, so it counts in the next one's share.
        done = time.perf_counter()
        self._spent = done - self._last_frame_at
        if late is None:
            self._cadence.leave(number, done, done - self._entered)
        else:
            # What it costs is told by the device, when it has arrived there.
            self._cadence.measured(number)
            self._cadence.leave(number, done)
        self._device.left(number)
