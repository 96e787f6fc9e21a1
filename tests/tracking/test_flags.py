"""Flags that arrive when they arrive: nothing waits for them, and none is lost on the way."""

from __future__ import annotations

import contextlib

import pytest
import torch

from spectral_kernels.tracking.flags import LateFlags
from spectral_kernels.tracking.results import Work
from spectral_kernels.tracking.whole.state import WORK


class SlowEvent:
    """An event of a device that has not come there yet; ``there`` tells the current device."""

    def __init__(self, there: CurrentDevice) -> None:
        self.arrived = False
        self.records = 0
        self._there = there

    def record(self) -> None:
        assert self._there.entered
        self.records += 1
        self.arrived = False

    def query(self) -> bool:
        assert self._there.entered
        return self.arrived


class CurrentDevice(contextlib.AbstractContextManager[None]):
    """Whether the device of the flags is the current one."""

    entered = False

    def __enter__(self) -> None:
        self.entered = True

    def __exit__(self, *_: object) -> None:
        self.entered = False


@pytest.fixture(autouse=True)
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a graph is being captured, which a build without CUDA cannot say."""
    state = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state[0])
    return state


def slow_flags() -> tuple[LateFlags, SlowEvent]:
    flags = LateFlags([2, 0, 3], torch.device("cpu"))
    flags._there = CurrentDevice()
    event = flags._event = SlowEvent(flags._there)
    return flags, event


def lost(*indices: int) -> torch.Tensor:
    found = torch.zeros(5, dtype=torch.bool)
    found[list(indices)] = True
    return found


def test_here_at_once_on_the_cpu() -> None:
    flags = LateFlags([2, 0, 3], torch.device("cpu"))
    assert flags.heard() == [[], [], []]
    flags.send(lost(1, 2, 4))
    assert flags.heard() == [[1], [], [0, 2]]
    # What has been heard is not heard again.
    assert flags.heard() == [[], [], []]
    flags.send(lost())
    assert flags.heard() == [[], [], []]


def test_flags_on_their_way_are_not_overtaken() -> None:
    flags, event = slow_flags()
    flags.send(lost(0))
    assert flags.heard() == [[], [], []]
    flags.send(lost(3))
    assert event.records == 1
    event.arrived = True
    assert flags.heard() == [[0], [], []]
    flags.send(lost(3))
    event.arrived = True
    assert flags.heard() == [[], [], [1]]


def test_nothing_is_asked_while_a_graph_is_captured(capturing: list[bool]) -> None:
    flags, event = slow_flags()
    capturing[0] = True
    flags.send(lost(0))
    assert event.records == 0
    capturing[0] = False
    flags.send(lost(0))
    event.arrived = True
    capturing[0] = True
    assert flags.heard() == [[], [], []]
    capturing[0] = False
    assert flags.heard() == [[0], [], []]


def test_work_is_what_the_codes_say_now() -> None:
    codes = torch.tensor([0, -1, 4])
    work = Work(codes, torch.zeros(3, dtype=torch.bool), WORK)
    assert list(work) == ["kept", "not finite", "solved"]
    codes[0] = 2
    assert (len(work), work[0], work[1:]) == (3, "rotated twice", ["not finite", "solved"])
