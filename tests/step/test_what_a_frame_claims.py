"""A frame says what it is of: gradients that are scaled, a reference that is not the start."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.frame import SpectralFrame
from torch import nn

WATCH = ("weights", "updates", "gradients")


def due(frame: SpectralFrame | None) -> SpectralFrame:
    assert frame is not None
    return frame


def backward(model: nn.Module, scaler: Any = None) -> None:
    model.zero_grad()
    loss = model(torch.ones(3, 6)).square().mean()
    (loss if scaler is None else scaler.scale(loss)).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_before_unscale_are_those_without_a_scaler(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 5, bias=False).to(dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    name = "weight[gradient]"

    def norm(**options: Any) -> float:
        watch = SpectralMonitor(model, every=1, watch=WATCH, **options)
        return due(watch.step()).matrices[name].spectral_norm

    inputs = torch.ones(3, 6, dtype=dtype)
    model(inputs).square().mean().backward()
    expected = norm()
    optimizer.zero_grad()
    scaler.scale(model(inputs).square().mean()).backward()
    assert norm() == pytest.approx(65536 * expected, rel=1e-5)
    for tell in (scaler, scaler.get_scale, 65536.0):
        assert norm(grad_scale=tell) == pytest.approx(expected, rel=1e-5)
    # Read after they were unscaled there is nothing to divide by.
    scaler.unscale_(optimizer)
    assert norm() == pytest.approx(expected, rel=1e-5)


def test_what_gradients_are_is_explained() -> None:
    model = nn.Linear(6, 5)
    assert "gradients are read" not in SpectralMonitor(model).explain()
    told = SpectralMonitor(model, watch=WATCH).explain()
    assert "gradients are read when step is called, as they are: multiplied by a loss scale" in told
    assert "none after zero_grad" in told
    told = SpectralMonitor(model, watch=WATCH, grad_scale=2.0).explain()
    assert "divided by the loss scale that grad_scale tells: right before GradScaler" in told
    for wrong in (0.0, -1, math.inf, math.nan, True, "65536"):
        with pytest.raises(ValueError, match="grad_scale: expected a number above 0, a function"):
            SpectralMonitor(model, watch=WATCH, grad_scale=wrong)


def test_gradients_after_zero_grad_have_a_reason() -> None:
    model = nn.Linear(6, 5)
    watch = SpectralMonitor(model, every=1, watch=WATCH)
    backward(model)
    row = due(watch.step()).matrices["weight[gradient]"]
    assert row.finite
    assert row.reason == ""
    model.zero_grad()
    row = due(watch.step()).matrices["weight[gradient]"]
    assert not row.finite
    assert "zero_grad" in row.reason


def run(model: nn.Module, watch: SpectralMonitor, steps: range) -> SpectralFrame:
    frame = None
    for step in steps:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
        frame = watch.step(step)
    return due(frame)


def test_a_run_resumed_without_the_monitors_state_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(24, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch = SpectralMonitor(model, every=1)
        run(model, watch, range(1, 21))
        state, weights = watch.state_dict(), copy.deepcopy(model.state_dict())
        expected = run(model, watch, range(21, 25))
        # With the state the reference is that of the start.
        model.load_state_dict(weights)
        resumed = SpectralMonitor(model, every=1)
        resumed.load_state_dict(state)
        again = run(model, resumed, range(21, 25))
    np.testing.assert_allclose(again.agreement["weight"], expected.agreement["weight"], atol=1e-3)
    assert again.reference == "the weights when the monitor was made"
    # Without, it is another number under the same name.
    model.load_state_dict(weights)
    blind = SpectralMonitor(model, every=1)
    with pytest.warns(UserWarning, match="its first step is 21: agreement is with those, not with"):
        frame = run(model, blind, range(21, 25))
    assert frame.agreement["weight"].mean() > expected.agreement["weight"].mean() + 0.1
    told = "the weights when the monitor was made, at step 21, not the initial ones"
    assert frame.reference == told
    assert f"agreement is measured against: {told}" in blind.explain()
    assert frame.to_dict()["reference"] == told
    # And so it stays when that monitor's state goes on.
    later = SpectralMonitor(model, every=1)
    later.load_state_dict(blind.state_dict())
    assert due(later.step(25)).reference == told


def test_a_run_resumed_between_two_measured_steps_says_so() -> None:
    model = nn.Linear(6, 5)
    watch = SpectralMonitor(model, every=50)
    with pytest.warns(UserWarning, match="its first step is 20: agreement is with those, not with"):
        watch.step(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = run(model, watch, range(21, 51))
    assert frame.reference.endswith("at step 20, not the initial ones")


def test_frames_in_the_folder_tell_that_a_run_goes_on(tmp_path: Path) -> None:
    model = nn.Linear(6, 5)
    with Recorder(tmp_path) as recorder:
        run(model, SpectralMonitor(model, every=1, recorder=recorder), range(2))
    with Recorder(tmp_path, resume_from=0) as recorder:
        watch = SpectralMonitor(model, every=1, recorder=recorder)
        with pytest.warns(UserWarning, match="its first step is 1"):
            watch.step(1)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"every": 1}, 0),
        ({"every": 1}, 1),
        ({"every": 50}, 50),
        ({}, 1),
        ({"reference": "previous"}, 700),
        ({"reference": None}, 700),
    ],
    ids=str,
)
def test_a_run_from_its_start_is_not_warned(options: dict[str, Any], first: int) -> None:
    watch = SpectralMonitor(nn.Linear(6, 5), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.step(first)
    assert "not the initial ones" not in watch.explain()
