"""The monitor's step on a GPU, without one: the same numbers, nothing read, few launches."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.device.path import not_these
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame
from spectral_monitor.step.tracked_solver import TrackedSolver
from torch import nn

import spectral_kernels as sk
from tests.support.device_steps import LateStreams, as_device
from tests.support.monitored import Net, due, jolt, update


class Mixed(nn.Module):
    """Matrices whose parameters have no 2-D view, of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.up = nn.ConvTranspose2d(5, 4, 2)
        self.rnn = nn.LSTM(6, 4)
        self.out = nn.Linear(4, 9)


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
    copied = [watch.matrices[i].name for i in watch._device._places.memory]
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
    assert [watch.matrices[i].name for i in watch._device._places.memory] == ["head.weight"]
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
        "spectral_monitor.device.frame.FrameMaker.lost",
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
        "spectral_monitor.device.frame.FrameMaker.lost",
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

    monkeypatch.setattr("spectral_monitor.monitor.time.perf_counter", tick)
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


def test_what_keeps_a_step_waiting_is_told() -> None:
    model = Net()

    def told(watch: SpectralMonitor) -> str:
        return next(line for line in watch.explain().splitlines() if "a step " in line)

    assert told(SpectralMonitor(model, every=1)) == (
        "a step waits for its numbers: the weights are on the device 'cpu'"
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "exact"}, "method 'tracked' alone goes on from vectors on the device"),
        ({"method": "randomized"}, "method 'tracked' alone goes on from vectors on the device"),
        ({"watch": ["weights", "updates"]}, "updates and gradients are solved from scratch"),
        ({"reference": None}, "there are no vectors to go on from yet (embed.weight, "
         "block.self_attn.in_proj_weight, block.self_attn.out_proj.weight)"),
    ]  # fmt: skip
    for options, reason in cases:
        watch = as_device(SpectralMonitor(model, **{"every": 1, **options}))
        assert told(watch) == f"a step waits for its numbers: {reason}"
        assert due(watch.step())._late is None
    watch = as_device(SpectralMonitor(nn.Linear(400, 400), every=1))
    assert "some short sides are too long to track all values (see k)" in told(watch)
    watch = as_device(SpectralMonitor({"a": torch.eye(3), "b": torch.eye(3).double()}, every=1))
    assert "results of several dtypes: some weights are float64" in told(watch)


def test_updates_that_read_their_bounds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(k: int | None) -> str | None:
        solver = SpectralMonitor(Net(), every=1, k=k)._solver
        assert isinstance(solver, TrackedSolver)
        views = [torch.empty(matrix.shape, device="meta") for matrix in solver._measured]
        return not_these(views, solver, "meta")

    plain = "tracking.whole runs in plain torch, which reads its bounds as it goes"
    assert why(None) == why(3) == plain
    kernels = SimpleNamespace(
        __name__="a.triton_backend",
        supported=lambda A, width: width <= 8,
        svd_waits=lambda m, n, dtype, device: m == n > 8 and dtype == torch.float64,
    )
    monkeypatch.setattr("spectral_monitor.device.path.backend", lambda operation, device: kernels)
    assert why(None) is None
    # Seven columns are all that the smallest sides have; the others have sixteen here.
    assert why(3) == "k = 3 of a float32 matrix has no kernel"
    kernels.supported = lambda A, width: True
    told = why(3) or ""
    assert re.fullmatch(r"k = 3 needs an SVD of side \d+ that runs in plain torch", told)
    kernels.svd_waits = lambda *given: False
    assert why(3) is None


def test_pauses_and_options_that_change_the_path() -> None:
    model = Net()
    plain, watch = SpectralMonitor(model, every=1), as_device(SpectralMonitor(model, every=1))
    for seed in range(8):
        update(model, seed)
        with torch.no_grad():
            # One matrix goes to float64 and back, for which the whole step waits.
            model.head.double() if seed == 3 else model.head.float()
        if seed == 5:
            with watch.paused(), plain.paused():
                assert watch.step() is None
                assert plain.step() is None
        frame = due(watch.step())
        assert (frame._late is None) == (seed == 3)
        assert_same_frames(frame, due(plain.step()))
        model.head.float()


def test_the_packed_copy_is_in_the_memory_plan() -> None:
    model = Net().to(torch.bfloat16)
    assert "packed copy" not in SpectralMonitor(model, every=1).memory().kept
    kept = as_device(SpectralMonitor(model, every=1)).memory().kept["packed copy"]
    assert kept == {name: 4 * p.numel() for name, p in model.named_parameters() if p.dim() == 2}


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


def test_a_capture_of_the_callers_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = LateStreams()
    watch = as_device(SpectralMonitor(Net(), every=1), streams)
    due(watch.step())
    issued = streams.issued
    loss = torch.tensor(1.0, device="meta")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        # Reading the loss would end the capture with an error.
        with pytest.warns(UserWarning, match="while a CUDA graph is captured"):
            assert watch.step(loss=loss) is None
    assert streams.issued == issued
    assert due(watch.step()).step == 1
