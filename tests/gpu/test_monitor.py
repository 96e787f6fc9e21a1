"""The monitor's step on a GPU: nothing waits, three launches, the numbers of float64."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.program import StepProgram
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tests.support.monitored import Net, assert_within_bounds, due, update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def no_waiting() -> Any:
    """Call it where from then on every wait for the device is an error."""

    def start() -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    yield start
    torch.cuda.set_sync_debug_mode("default")


def drift(model: nn.Module, seed: int, size: float = 1e-3) -> None:
    """A step that waits for nothing: every parameter moves, in place."""
    generator = torch.Generator("cuda").manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, device="cuda", generator=generator), alpha=size)


@pytest.mark.parametrize(
    "options", [{}, {"reference": "previous"}, {"k": 3}, {"pairs": None}], ids=str
)
def test_a_step_waits_for_nothing(options: dict[str, Any], no_waiting: Any) -> None:
    model = Net(24).cuda()
    watch = SpectralMonitor(model, **{"every": 1, **options})
    for seed in range(4):
        drift(model, seed)
        watch.step(loss=torch.ones((), device="cuda"))
    assert "as one graph" in watch.explain()
    no_waiting()
    frames = []
    models = []
    for seed in range(4, 9):
        drift(model, seed)
        models.append(copy.deepcopy(model))
        frames.append(due(watch.step(loss=torch.full((), seed, device="cuda"))))
    torch.cuda.set_sync_debug_mode("default")
    for seed, (frame, known) in enumerate(zip(frames, models, strict=True), start=4):
        assert frame.scalars == {"loss": float(seed)}
        assert set(frame.agreement) == set(watch._reference._vectors)
        for name, row in frame.matrices.items():
            weight = known.get_parameter(name).detach().cpu().double().numpy()
            expected = np.linalg.svd(weight, compute_uv=False)[: len(row.singular_values)]
            error = np.abs(row.singular_values - expected)
            assert (error <= row.singular_value_bounds).all(), name


def test_a_step_is_three_launches() -> None:
    model = Net(24).cuda()
    watch = SpectralMonitor(model, every=1)
    for seed in range(4):
        drift(model, seed)
        watch.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        watch.step()
        torch.cuda.synchronize()
    issued = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
    calls = [
        event.name
        for event in seen.events()
        if event.name.startswith(("cuda", "cu")) and any(part in event.name for part in issued)
    ]
    assert len(calls) <= 3, calls
    assert sum("GraphLaunch" in name for name in calls) == 1


def test_training_on_a_gpu_is_followed_within_the_bounds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = Net(24)
    model = copy.deepcopy(trained).cuda()
    watch = SpectralMonitor(model, every=1, recorder=Recorder(tmp_path))
    for seed in range(30):
        update(trained, seed)
        with torch.no_grad():
            for p, q in zip(model.parameters(), trained.parameters(), strict=True):
                p.copy_(q)
        assert_within_bounds(due(watch.step(seed)), trained)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    row = due(watch.step(30)).matrices["head.weight"]
    assert not row.finite
    assert np.isnan(row.singular_values).all()
    watch.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(31))


def test_a_jump_is_reported_with_its_bound_and_solved_soon() -> None:
    model = Net(24).cuda()
    watch = SpectralMonitor(model, every=1)
    for seed in range(4):
        drift(model, seed)
        watch.step()
    with torch.no_grad():
        model.head.weight.copy_(torch.randn_like(model.head.weight))
    works = []
    for _ in range(4):
        frame = due(watch.step())
        row = frame.matrices["head.weight"]
        works.append(row.work)
        assert_within_bounds(frame, copy.deepcopy(model).cpu())
    assert "solved" in works
    assert row.singular_value_bounds.max() <= 1.01e-3 * row.spectral_norm
    assert watch.resolves >= 1


def test_a_state_and_a_budget_of_time() -> None:
    model = Net(24).cuda()
    watch = SpectralMonitor(model, overhead=0.5)
    for step in range(20):
        drift(model, step)
        watch.step(step)
    other = SpectralMonitor(model, overhead=0.5)
    other.load_state_dict(watch.state_dict())
    drift(model, 20)
    a, b = due(watch.step(1000)), due(other.step(1000))
    assert a.overhead > 0
    for name, row in a.matrices.items():
        np.testing.assert_allclose(
            row.singular_values,
            b.matrices[name].singular_values,
            atol=2.0 * float(row.singular_value_bounds.max()),
        )


def test_a_capture_that_fails_leaves_training_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = StepProgram.compute

    def asks(program: StepProgram) -> None:
        compute(program)
        # Forbidden while a stream is captured.
        program.block.sum().item()

    monkeypatch.setattr(StepProgram, "compute", asks)
    model = Net(24).cuda()
    watch = SpectralMonitor(model, every=1)
    for seed in range(4):
        drift(model, seed)
        assert_within_bounds(due(watch.step()), copy.deepcopy(model).cpu())
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        # An error where torch takes a capture to be going on.
        torch.rand(3, device="cuda")
    assert "it could not be recorded" in watch.explain()
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(3, device="cuda")
    with torch.cuda.graph(graph):
        x += torch.rand(3, device="cuda")
    graph.replay()
    assert (x > 0).all()


def test_a_capture_of_the_callers_own_is_left_alone() -> None:
    model = Net(24).cuda()
    watch = SpectralMonitor(model, overhead=0.5)
    for seed in range(3):
        drift(model, seed)
        watch.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for p in model.parameters():
            p.detach().add_(1e-3)
        with pytest.warns(UserWarning, match="is captured"):
            assert watch.step(loss=torch.zeros((), device="cuda")) is None
    graph.replay()
    assert_within_bounds(due(watch.step(1000)), copy.deepcopy(model).cpu())
