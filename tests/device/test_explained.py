"""What a monitor says of its step on a GPU, and which options change it."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from spectral_monitor.device.path import not_these
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.tracked_solver import TrackedSolver
from torch import nn

from tests.support.device_steps import LateStreams, as_device, assert_same_frames
from tests.support.monitored import Net, due, update


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
        solver = SpectralMonitor(Net(), every=1, k=k)._measurement.solver
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
