"""The monitor's step on a GPU, without one: the same numbers, nothing read, few launches."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame
from torch import nn

import spectral_kernels as sk
from tests.support.device_steps import LateStreams, as_device, assert_same_frames
from tests.support.monitored import Net, due, jolt, update


class Mixed(nn.Module):
    """Matrices whose parameters have no 2-D view, of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.up = nn.ConvTranspose2d(5, 4, 2)
        self.rnn = nn.LSTM(6, 4)
        self.out = nn.Linear(4, 9)


def given(model: nn.Module) -> dict[str, Any]:
    torch.manual_seed(1)
    return {"head.weight": sk.svd(torch.randn(7, 12))}


# How many of eight steps are taken by the device: not the first one where there are no vectors to
# go on from.
@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, 8),
        ({"reference": "previous"}, 7),
        ({"reference": None}, 7),
        ({"reference": given}, 7),
        ({"pairs": None, "reference": None}, 7),
        ({"k": 3}, 8),
        ({"k": 8, "reference": "previous"}, 7),
        ({"every": 2}, 4),
    ],
    ids=["init", "previous", "none", "given", "values alone", "k 3", "k 8", "every 2"],
)
def test_the_numbers_are_those_of_the_ordinary_step(
    options: dict[str, Any], taken: int, backend: str
) -> None:
    torch.manual_seed(0)
    model = Net()
    if callable(options.get("reference")):
        options = options | {"reference": options["reference"](model)}
    plain, watch = (
        SpectralMonitor(model, **{"every": 1, **options}),
        SpectralMonitor(model, **{"every": 1, **options}),
    )
    as_device(watch)
    late = 0
    for seed in range(8):
        if seed < 5:
            update(model, seed)
        else:
            jolt(model, seed, 0.3 if seed == 6 else 1e-3)
        with torch.no_grad():
            if seed == 4:
                model.head.weight[1, 2] = float("nan")
            if seed == 5:
                model.head.weight[1, 2] = 0.5
        expected, frame = plain.step(loss=float(seed)), watch.step(loss=float(seed))
        assert (expected is None) == (frame is None)
        if expected is not None and frame is not None:
            late += frame._late is not None
            assert_same_frames(frame, expected)
            assert frame._late is None
    assert late == taken
    assert watch.resolves == plain.resolves


def test_matrices_without_a_view_are_copied_for_the_snapshot(backend: str) -> None:
    torch.manual_seed(0)
    model = Mixed()
    plain, watch = SpectralMonitor(model, every=1), as_device(SpectralMonitor(model, every=1))
    for seed in range(4):
        jolt(model, seed)
        frame = due(watch.step())
        assert frame._late is not None
        assert_same_frames(frame, due(plain.step()))
    copied = [watch.matrices[i].name for i in watch._measurement.device._places.memory]
    assert copied == ["conv.weight", "up.weight"]


def test_single_precision_of_several_kinds_and_double(backend: str) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = Net().to(dtype)
        plain, watch = SpectralMonitor(model, every=1), as_device(SpectralMonitor(model, every=1))
        for seed in range(3):
            jolt(model, seed)
            frame = due(watch.step())
            assert frame._late is not None
            assert_same_frames(frame, due(plain.step()))


def test_nothing_is_waited_for_and_frames_come_when_they_arrive() -> None:
    class Sink:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.closed = False

        def write(self, frame: SpectralFrame) -> None:
            assert frame.arrived
            self.steps.append(frame.step)

        def close(self) -> None:
            self.closed = True

    model, sink, streams = Net(), Sink(), LateStreams()
    plain = SpectralMonitor(model, every=1)
    watch = as_device(SpectralMonitor(model, every=1, recorder=sink), streams)
    frames, expected = [], []
    for seed in range(5):
        update(model, seed)
        frames.append(due(watch.step()))
        expected.append(due(plain.step()))
        if seed == 2:
            assert sink.steps == []
            assert not any(frame.arrived for frame in frames)
            streams.catch_up()
    assert sink.steps == [0, 1, 2]
    assert streams.waits == 0
    assert [frame.arrived for frame in frames] == [True] * 3 + [False] * 2
    # The order on the device: nothing overwrites what is still read, nothing reads too early.
    assert streams.log == [
        "follow", "landing",
        "record", "follow", "follow", "replay", "landing",
        "follow", "follow", "replay", "landing",
        "follow", "follow", "replay",
        "follow", "follow", "replay",
    ]  # fmt: skip
    for frame, other in zip(frames, expected, strict=True):
        assert_same_frames(frame, other)
    # Looking at the last two was waiting, once for each.
    assert streams.waits == 2
    watch.close()
    assert sink.steps == [0, 1, 2, 3, 4]
    assert sink.closed
    update(model, 5)
    assert_same_frames(due(watch.step()), due(plain.step()))
    assert sink.steps == [0, 1, 2, 3, 4]


def test_there_is_room_for_as_many_steps_as_were_ever_on_their_way() -> None:
    model, streams = Net(), LateStreams()
    watch = as_device(SpectralMonitor(model, every=1), streams)
    frames = []
    for seed in range(6):
        update(model, seed)
        frames.append(due(watch.step()))
    assert streams.log.count("landing") == 6
    streams.catch_up()
    for seed in range(6):
        update(model, seed)
        watch.step()
        streams.catch_up()
    assert streams.log.count("landing") == 6
    assert streams.waits == 0


def test_lookups_outside_the_fields_are_errors_and_do_not_wait() -> None:
    model, streams = Net(), LateStreams()
    watch = as_device(SpectralMonitor(model, every=1), streams)
    frame = due(watch.step(7))
    with pytest.raises(AttributeError, match="no 'matrixes'"):
        _ = frame.matrixes
    assert frame.step == 7
    assert streams.waits == 0
    twin = copy.copy(frame)
    assert twin.matrices is frame.matrices
    assert "SpectralFrame(step=7" in repr(frame)


def test_a_state_has_everything_that_was_issued() -> None:
    model, streams = Net(), LateStreams()
    seen: list[int] = []

    class Log:
        def log(self, values: dict[str, Any], *, step: int) -> None:
            seen.append(step)

    for reference in ("init", "previous"):
        seen.clear()
        plain = SpectralMonitor(model, every=1, reference=reference)
        watch = as_device(
            SpectralMonitor(model, every=1, reference=reference, recorder=Log()), streams
        )
        for seed in range(4):
            update(model, seed)
            plain.step()
            watch.step()
        state, other = watch.state_dict(), plain.state_dict()
        assert seen == [0, 1, 2, 3]
        for a, b in zip(_leaves(state), _leaves(other), strict=True):
            np.testing.assert_equal(a, b)
        resumed = as_device(SpectralMonitor(model, every=1, reference=reference), streams)
        resumed.load_state_dict(state)
        for seed in range(4, 7):
            update(model, seed)
            expected = due(plain.step())
            assert_same_frames(due(watch.step()), expected)
            assert_same_frames(due(resumed.step()), expected)


def _leaves(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for key in sorted(state) for leaf in _leaves(state[key])]
    if isinstance(state, (list, tuple)):
        return [leaf for item in state for leaf in _leaves(item)]
    return [state.numpy() if isinstance(state, torch.Tensor) else state]


def test_parameters_that_move_make_a_new_program_and_other_shapes_a_reason() -> None:
    model, streams = Net(), LateStreams()
    plain, watch = (
        SpectralMonitor(model, every=1),
        as_device(SpectralMonitor(model, every=1), streams),
    )
    for seed in range(6):
        update(model, seed)
        if seed == 3:
            model.head.weight.data = model.head.weight.data.clone()
        frame = due(watch.step())
        assert frame._late is not None
        assert_same_frames(frame, due(plain.step()))
    assert streams.log.count("record") == 2
    with torch.no_grad():
        model.head.weight = nn.Parameter(torch.randn(7, 13))
    with pytest.warns(UserWarning, match=r"head\.weight: its shape was \(7, 12\)"):
        frame = due(watch.step())
    # Such a step is waited for, and the other matrices have their numbers.
    assert [n for n, row in frame.matrices.items() if row.reason] == ["head.weight"]
    assert "a step waits for its numbers: head.weight: its shape was" in watch.explain()


def test_parameters_that_move_at_every_step_are_copied() -> None:
    model, streams = Net(), LateStreams()
    plain, watch = (
        SpectralMonitor(model, every=1),
        as_device(SpectralMonitor(model, every=1), streams),
    )
    before = []
    for seed in range(8):
        update(model, seed)
        # Kept, so that no memory comes back.
        before.append(model.head.weight.data)
        model.head.weight.data = model.head.weight.data.clone()
        frame = due(watch.step())
        assert frame._late is not None
        assert_same_frames(frame, due(plain.step()))
    assert [watch.matrices[i].name for i in watch._measurement.device._places.memory] == [
        "head.weight"
    ]
    # Recorded once: the programs of the first two steps were never run twice.
    assert streams.log.count("record") == 1


def test_a_program_that_cannot_be_recorded_runs_launch_by_launch() -> None:
    class Refusing(LateStreams):
        def recorded(self, work: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

    model = Net()
    plain, watch = (
        SpectralMonitor(model, every=1),
        as_device(SpectralMonitor(model, every=1), Refusing()),
    )
    assert "issued to the device and not waited for, as one graph" in watch.explain()
    for seed in range(4):
        update(model, seed)
        assert_same_frames(due(watch.step()), due(plain.step()))
    assert (
        "not waited for, launch by launch: it could not be recorded (RuntimeError: operation not "
        "permitted when stream is capturing)" in watch.explain()
    )


def test_scalars_on_the_device_come_with_the_numbers() -> None:
    model, streams = Net(), LateStreams()
    watch = as_device(SpectralMonitor(model, every=1), streams)
    loss = torch.tensor([0.1], requires_grad=True)
    frame = due(watch.step(loss=loss, rate=0.5, count=torch.tensor(3)))
    with torch.no_grad():
        loss += 1.0
    assert streams.waits == 0
    assert frame.scalars == {"loss": float(np.float32(0.1)), "rate": 0.5, "count": 3.0}
    assert list(frame.scalars) == ["loss", "rate", "count"]
    many = {f"x{i}": torch.tensor(float(i)) for i in range(40)}
    assert due(watch.step(**many)).scalars == {f"x{i}": float(i) for i in range(40)}
    with pytest.raises(ValueError, match=r"scalar 'loss': expected one number, got shape \(2,\)"):
        watch.step(loss=torch.zeros(2))
    with pytest.raises(ValueError, match="scalar 'every': the monitor reports its own every"):
        watch.step(every=torch.tensor(1.0))


def test_the_share_of_the_time_is_that_of_the_device_where_it_is_the_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 0.0

    def tick() -> float:
        nonlocal clock
        clock += 1e-6
        return clock

    monkeypatch.setattr("spectral_monitor.pace.time.perf_counter", tick)
    model, streams = Net(), LateStreams()
    watch = as_device(SpectralMonitor(model, overhead=0.1), streams)
    measured = []
    for step in range(200):
        # The host is far ahead: a step takes it a millisecond, the device ten.
        clock += 0.001 if step < 20 else 0.01
        streams.training_seconds += 0.01
        frame = watch.step(step)
        if step % 5 == 4:
            streams.catch_up()
        if frame is not None:
            measured.append(step)
            share = frame.overhead
    # Marks of a measurement are two milliseconds apart in all, those of a training step eleven:
    # c / (n t + c) <= 0.1 from n = 2 on.
    assert measured[-1] - measured[-2] == 2
    assert share == pytest.approx(0.002 / (2 * 0.01), rel=0.01)
    told = watch.explain()
    assert "a measurement takes 2 ms, a training step 11 ms" in told
    with watch.paused():
        streams.training_seconds += 10.0
        watch.step(200)
    for step in range(201, 210):
        streams.training_seconds += 0.01
        watch.step(step)
        streams.catch_up()
    assert watch.explain() == told


def test_a_state_takes_the_place_of_what_was_going_on() -> None:
    model = Net()
    plain = SpectralMonitor(model, every=1, reference=None)
    watch = as_device(SpectralMonitor(model, every=1, reference=None))
    states = []
    for seed in range(6):
        states.append(watch.state_dict())
        update(model, seed)
        plain.step()
        watch.step()
    for state in (states[3], states[0]):
        plain.load_state_dict(state)
        watch.load_state_dict(state)
        for step in range(3):
            update(model, 10 + step)
            frame = due(watch.step())
            # Whether there are vectors to go on from is known after a step.
            assert (frame._late is None) == (step == 0)
            assert_same_frames(frame, due(plain.step()))
