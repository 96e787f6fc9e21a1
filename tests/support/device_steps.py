"""The GPU step of a monitor on the CPU: the same program and runner, on streams of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from spectral_monitor.device.step import DeviceStep
from spectral_monitor.device.streams import HostStreams, Mark
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.pace import Pace
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor


class LateMark:
    """Arrives when the streams let it, or when the host waits for it."""

    def __init__(self, streams: LateStreams) -> None:
        self._streams = streams
        self._number = streams.issued = streams.issued + 1
        self._at = 1e-3 * self._number + streams.training_seconds

    def arrived(self) -> bool:
        return self._number <= self._streams.done

    def wait(self) -> None:
        if not self.arrived():
            self._streams.waits += 1
            self._streams.done = self._number

    def seconds_since(self, earlier: Any) -> float:
        assert self.arrived()
        assert earlier.arrived()
        return float(self._at - earlier._at)


class LateStreams(HostStreams):
    """A device that is behind: what it is given counts as done when `catch_up` is called.

    ``log`` has what was asked of it, ``waits`` counts how often the host had to wait. From mark to
    mark a millisecond goes by, and what is added to ``training_seconds``.
    """

    def __init__(self) -> None:
        self.issued, self.done, self.waits = 0, 0, 0
        self.training_seconds = 0.0
        self.log: list[str] = []

    def catch_up(self) -> None:
        self.done = self.issued

    def mark(self) -> Mark:
        return LateMark(self)

    def follow(self, mark: Mark) -> None:
        self.log.append("follow")

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        self.log.append("record")

        def replay() -> None:
            self.log.append("replay")
            work()

        return replay

    def landing(self, length: int) -> Tensor:
        self.log.append("landing")
        return super().landing(length)


def as_device(watch: SpectralMonitor, streams: HostStreams | None = None) -> SpectralMonitor:
    """The monitor, taking its steps as on a GPU."""
    watch._measurement.device = DeviceStep(
        watch._measurement.asked,
        watch._plan.parts,
        watch._measurement.comparisons,
        watch._measurement.vectors,
        watch._cadence,
        kind="cpu",
        streams=lambda device: streams or HostStreams(),
    )
    watch._pace = Pace(watch._cadence, watch._measurement.device)
    if watch._reference.wants_init:
        watch._measurement.device.started([True] * len(watch.matrices))
    return watch


def numbers(frame: SpectralFrame) -> dict[str, Any]:
    told = frame.to_dict()
    del told["overhead"]
    return told


def assert_same_frames(a: SpectralFrame, b: SpectralFrame) -> None:
    np.testing.assert_equal(numbers(a), numbers(b))
    for name, row in a.matrices.items():
        other = b.matrices[name]
        assert row.singular_values.dtype == other.singular_values.dtype
        assert row.singular_value_bounds.dtype == other.singular_value_bounds.dtype
    for group in ("alignment", "agreement", "subspace_agreement", "identifiable", "identities"):
        mine, theirs = getattr(a, group), getattr(b, group)
        assert mine.keys() == theirs.keys()
        assert all(mine[key].dtype == theirs[key].dtype for key in mine), group
    assert a.chance == b.chance
    assert a.mean("stable_rank") == b.mean("stable_rank")
