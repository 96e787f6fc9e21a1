"""Matrices that a tracker lost on a device: solved anew at a later step, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame

from tests.support.device_steps import LateStreams, as_device
from tests.support.monitored import Net, due, update


def test_lost_matrices_are_solved_anew_at_a_later_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU nothing is ever lost, so that the flags are planted here."""
    solved: list[Any] = []
    monkeypatch.setattr(
        "spectral_kernels.tracking.op.SpectrumTracker.resolve",
        lambda tracker, which: solved.append((len(frames), which)),
    )
    flags = {2: [1], 3: [1], 4: [], 5: [0]}
    model, streams = Net(), LateStreams()
    watch = as_device(SpectralMonitor(model, every=1), streams)
    frames: list[SpectralFrame] = []
    monkeypatch.setattr(
        "spectral_monitor.step.unpacking.Unpacking.lost",
        lambda maker, told: flags.get(int(maker.scalars(told)[0]), []),
    )
    for step in range(9):
        update(model, step)
        frames.append(due(watch.step(step, number=torch.tensor(step))))
        if step in (3, 6):
            streams.catch_up()
    names = [matrix.name for matrix in (*watch.matrices, *watch.parts)]
    # The flags of steps 2 and 3 arrive together, before step 4; that of 5 before step 7.
    assert solved == [
        (4, [[0] if name == names[1] else [] for name in names]),
        (7, [[0] if name == names[0] else [] for name in names]),
    ]
    assert frames[4].matrices[names[1]].work == "solved"
    assert frames[4].matrices[names[0]].work != "solved"
    assert frames[5].matrices[names[1]].work != "solved"
    assert streams.waits == 0


def test_what_is_lost_before_a_solution_arrives_is_not_solved_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solved: list[int] = []
    monkeypatch.setattr(
        "spectral_kernels.tracking.op.SpectrumTracker.resolve",
        lambda tracker, which: solved.append(step),
    )
    monkeypatch.setattr(
        "spectral_monitor.step.unpacking.Unpacking.lost",
        lambda maker, told: [0] if maker.scalars(told)[0] < 4 else [],
    )
    model, streams = Net(), LateStreams()
    watch = as_device(SpectralMonitor(model, every=1), streams)
    for step in range(8):
        watch.step(step, number=torch.tensor(step))
        # Each step arrives two steps later.
        streams.done = max(streams.done, streams.issued - 8)
    # Heard of before step 3; steps 1 and 2 were issued before it, step 3 is the one that solves.
    assert solved == [3, 6]
