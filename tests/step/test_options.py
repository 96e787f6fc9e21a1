"""Options of a monitor, what it is called with and what it hands on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor import pace as pace_file
from spectral_monitor.monitor import SpectralMonitor

import spectral_kernels as sk
from tests.support.monitored import (
    Net,
    due,
)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("final", "expected a Recorder to save them"),
        ("nowhere", "expected 'init', 'previous', 'final', the folder of a run, SVDs or None"),
        ({"x": sk.svd(torch.eye(2))}, "no matrix is called 'x'"),
        ({"head.weight": sk.svd(torch.eye(2))}, r"U \(2, 2\).*the matrix is \(7, 12\)"),
        ([sk.svd(torch.eye(2))], "1 SVDs for 6 matrices"),
    ],
)
def test_wrong_references(reference: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpectralMonitor(Net(), every=1, reference=reference)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "svd"}, "method: expected one of tracked, exact, randomized, got 'svd'"),
        ({"method": "exact", "tolerance": 0.1}, "tolerance: an option of method 'tracked'"),
        ({"tolerance": 0.0}, "tolerance is 0.0; expected a positive finite number"),
        ({"every": 0}, "every: expected a whole number of at least 1, got 0"),
        ({"k": 0}, "k: expected"),
        ({"k": 2.5}, "k: expected"),
        ({"include": "nothing*"}, "fits no parameter"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpectralMonitor(Net(), **{"every": 1, **options})


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module or a mapping"):
        SpectralMonitor([torch.eye(2)], every=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="recorder: expected a Recorder"):
        SpectralMonitor(Net(), every=1, recorder=3)


def test_every_and_the_step_counter() -> None:
    watch = SpectralMonitor({"a": torch.eye(3)}, every=3)
    assert [watch.step() is not None for _ in range(7)] == [True, False, False] * 2 + [True]
    assert due(watch.frame).step == 6
    assert watch.step(10) is None
    assert due(watch.step(12)).step == 12
    assert watch.step() is None  # 13


def test_scalars() -> None:
    watch = SpectralMonitor({"a": torch.eye(3)}, every=2)
    x = torch.tensor([2.0], requires_grad=True)
    assert due(watch.step(loss=(x * 3).sum(), ok=True)).scalars == {"loss": 6.0, "ok": 1.0}
    # Not due: not even read.
    assert watch.step(loss=torch.zeros(3)) is None
    with pytest.raises(ValueError, match=r"scalar 'loss': expected one number, got shape \(3,\)"):
        watch.step(loss=torch.zeros(3))
    with pytest.raises(ValueError, match="reports its own overhead"):
        watch.step(4, overhead=1.0)


def test_paused() -> None:
    watch = SpectralMonitor({"a": torch.eye(3)}, every=1)
    watch.step()
    with watch.paused():
        assert watch.step() is None
        with watch.paused():
            assert watch.step() is None
        assert watch.step() is None
    assert due(watch.step()).step == 4


def test_overhead_is_the_monitors_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Entered, frame ready, written: for three frames.
    clock = iter([0.0, 1.0, 1.0, 10.0, 12.0, 13.0, 20.0, 22.0, 22.0])
    watch = SpectralMonitor({"a": torch.eye(3)}, every=1)
    monkeypatch.setattr(pace_file.time, "perf_counter", lambda: next(clock))
    assert math.isnan(due(watch.step()).overhead)
    assert due(watch.step()).overhead == pytest.approx(2 / 11)
    # The second that writing took counts too.
    assert due(watch.step()).overhead == pytest.approx(3 / 10)


class Log:
    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((values, step))


def test_loggers_by_duck_type() -> None:
    log, full = Log(), Log()

    watch = SpectralMonitor(Net(), every=1, recorder=[log, sk.LoggerSink(full, per_layer=True)])
    frame = due(watch.step(5, loss=1.5))
    ((values, step),) = log.calls
    assert step == 5
    assert values["loss"] == 1.5
    linear = [row.stable_rank for row in frame.matrices.values() if row.kind == "linear"]
    assert values["spectral/stable_rank/linear"] == pytest.approx(np.mean(linear))
    assert values["spectral/stable_rank/all"] == pytest.approx(frame.mean("stable_rank"))
    assert not any("head.weight" in key for key in values)
    ((everything, _),) = full.calls
    assert everything["spectral/stable_rank/head.weight"] == pytest.approx(
        frame.matrices["head.weight"].stable_rank
    )
    assert everything.keys() > values.keys()
    watch.close()
    watch.step(6)
    assert len(log.calls) == 1
