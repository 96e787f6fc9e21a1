"""The monitor's step on a GPU: nothing waits, three launches, the numbers of float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_monitor import Net, due, update
from test_monitor_tracked import assert_within_bounds
from torch import nn
from torch.profiler import ProfilerActivity, profile

from python_api.frame import SpectralFrame
from python_api.monitor import SpectralMonitor
from python_api.recorder import Recorder
from python_api.run import load_run

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


def on_cpu(frame: SpectralFrame, model: nn.Module) -> None:
    assert_within_bounds(frame, model.cpu())
    model.cuda()


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
    watch = SpectralMonitor(model, **options)
    for seed in range(4):
        drift(model, seed)
        watch.step(loss=torch.ones((), device="cuda"))
    assert "as one graph" in watch.explain()
    no_waiting()
    frames = []
    weights = []
    for seed in range(4, 9):
        drift(model, seed)
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        frames.append(due(watch.step(loss=torch.full((), seed, device="cuda"))))
    torch.cuda.set_sync_debug_mode("default")
    for seed, (frame, known) in enumerate(zip(frames, weights, strict=True), start=4):
        assert frame.scalars == {"loss": float(seed)}
        for name, row in frame.matrices.items():
            expected = np.linalg.svd(known[name].cpu().double().numpy(), compute_uv=False)
            error = np.abs(row.singular_values - expected[: len(row.singular_values)])
            assert (error <= row.singular_value_bounds).all(), name


def test_a_step_is_three_launches() -> None:
    model = Net(24).cuda()
    watch = SpectralMonitor(model)
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
    """The plain step and this one on the same weights, a jump and a NaN on the way."""
    torch.manual_seed(0)
    model = Net(24)
    watch = SpectralMonitor(model.cuda(), recorder=Recorder(tmp_path))
    for seed in range(30):
        update(model.cpu(), seed)
        with torch.no_grad():
            if seed == 10:
                model.head.weight.copy_(torch.randn_like(model.head.weight))
            if seed == 20:
                model.head.weight[0, 0] = float("nan")
            if seed == 21:
                model.head.weight[0, 0] = 0.0
                break
        # The parameters come back to other places.
        frame = due(watch.step(seed)) if model.cuda() is not None else None
        assert frame is not None
        if seed == 20:
            row = frame.matrices["head.weight"]
            assert not row.finite
            assert np.isnan(row.singular_values).all()
        else:
            on_cpu(frame, model)
    watch.close()
    assert load_run(tmp_path).steps.tolist() == list(range(21))


def test_a_jump_is_reported_with_its_bound_and_solved_soon() -> None:
    model = Net(24).cuda()
    watch = SpectralMonitor(model)
    for seed in range(4):
        drift(model, seed)
        watch.step()
    with torch.no_grad():
        model.head.weight.copy_(torch.randn_like(model.head.weight))
    works = []
    for _ in range(4):
        frame = due(watch.step())
        on_cpu_row = frame.matrices["head.weight"]
        works.append(on_cpu_row.work)
        expected = np.linalg.svd(model.head.weight.detach().cpu().double().numpy())[1]
        error = np.abs(on_cpu_row.singular_values - expected)
        assert (error <= on_cpu_row.singular_value_bounds).all()
    assert "solved" in works
    assert on_cpu_row.singular_value_bounds.max() <= 1.01e-3 * on_cpu_row.spectral_norm
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
    assert 0 < a.overhead
    for name, row in a.matrices.items():
        np.testing.assert_allclose(
            row.singular_values,
            b.matrices[name].singular_values,
            atol=2.0 * float(row.singular_value_bounds.max()),
        )
