"""Cadence by a budget: chosen from measured times, slow to change, and what it promises."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
import torch
from spectral_monitor import forecast as forecast_file
from spectral_monitor import pace as pace_file
from spectral_monitor.cadence import Cadence
from spectral_monitor.forecast import Forecast, forecast
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame


class Run:
    """A training run on a clock of its own."""

    def __init__(self, cadence: Cadence) -> None:
        self.cadence = cadence
        self.now = 0.0
        self.number = 0
        self.spent = 0.0
        self.due: list[int] = []

    def steps(self, count: int, *, training: float, cost: float) -> None:
        for _ in range(count):
            self.now += training
            self.cadence.enter(self.number, self.now)
            if self.cadence.is_due(self.number):
                self.now += cost
                self.spent += cost
                self.due.append(self.number)
                self.cadence.leave(self.number, self.now, cost)
            else:
                self.cadence.leave(self.number, self.now)
            self.number += 1

    def share(self) -> float:
        return self.spent / self.now


@pytest.mark.parametrize(
    ("overhead", "training", "cost", "every"),
    [
        (0.02, 10e-3, 1e-3, 5),  # 0.98 / 0.02 / 10 = 4.9
        (0.02, 1e-3, 5e-3, 245),
        (0.5, 1e-3, 1e-3, 1),
        (0.1, 1.0, 1e-3, 1),  # cheaper than the budget at every step
    ],
)
def test_the_budget_sets_the_cadence(
    overhead: float, training: float, cost: float, every: int
) -> None:
    run = Run(Cadence(overhead=overhead))
    run.steps(10_000, training=training, cost=cost)
    assert run.cadence.every == every
    assert run.share() <= overhead * 1.1
    assert run.due[:2] == [0, every]
    assert {b - a for a, b in itertools.pairwise(run.due)} == {every}


def test_an_expensive_start_is_forgotten() -> None:
    run = Run(Cadence(overhead=0.02))
    # The first measurement solves everything anew.
    run.steps(1, training=10e-3, cost=50e-3)
    run.steps(2000, training=10e-3, cost=1e-3)
    assert run.cadence.every == 5
    assert run.share() < 0.025


def test_it_follows_slowly() -> None:
    run = Run(Cadence(overhead=0.1))
    run.steps(300, training=1e-3, cost=1e-3)
    assert run.cadence.every == 9
    # A quarter more or less changes nothing.
    run.steps(300, training=1e-3, cost=1.2e-3)
    assert run.cadence.every == 9
    # One long pause, such as a validation, counts as a few steps.
    run.steps(1, training=10.0, cost=1e-3)
    run.steps(30, training=1e-3, cost=1e-3)
    assert 7 <= run.cadence.every <= 9
    # Ten times the cost: by a factor of two at a time, until it fits.
    run.steps(2000, training=1e-3, cost=10e-3)
    assert 72 <= run.cadence.every <= 113
    gaps = [b - a for a, b in itertools.pairwise(run.due)]
    assert all(b <= 2 * a for a, b in itertools.pairwise(gaps[2:]))
    before = run.spent, run.now
    run.steps(5000, training=1e-3, cost=10e-3)
    share = (run.spent - before[0]) / (run.now - before[1])
    assert 0.07 < share < 0.125


def test_rare_dear_measurements_are_within_the_budget() -> None:
    run = Run(Cadence(overhead=0.05))
    for _ in range(40_000):
        # New solutions at every tenth.
        run.steps(1, training=1e-3, cost=20e-3 if len(run.due) % 10 == 5 else 1e-3)
    assert 0.035 < run.share() < 0.06


def test_a_state_goes_on_with_the_same_cadence() -> None:
    run = Run(Cadence(overhead=0.02))
    run.steps(700, training=1e-3, cost=1e-3)
    other = Run(Cadence(overhead=0.02))
    other.cadence.load_state(run.cadence.state())
    other.number, other.now = run.number, 0.0
    run.steps(300, training=1e-3, cost=1e-3)
    other.steps(300, training=1e-3, cost=1e-3)
    assert other.due == [number for number in run.due if number >= 700]
    # That of a fixed cadence says nothing, and the other way round.
    fixed = Cadence(every=3)
    fixed.load_state(run.cadence.state())
    assert fixed.every == 3
    fresh = Cadence(overhead=0.02)
    fresh.load_state(fixed.state())
    assert fresh.is_due(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 2, "overhead": 0.02}, "expected one of them, got every=2 and overhead=0.02"),
        ({"overhead": 0.0}, "overhead: expected a share between 0 and 1, got 0.0"),
        ({"overhead": 2}, "overhead: expected a share between 0 and 1, got 2"),
        ({"every": 0}, "every: expected a whole number of at least 1, got 0"),
        ({"every": 1.5}, "every: expected a whole number of at least 1, got 1.5"),
        ({"every": True}, "every: expected a whole number of at least 1, got True"),
    ],
)
def test_wrong_cadences(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpectralMonitor({"a": torch.eye(3)}, **options)


def test_the_monitor_says_what_it_chose() -> None:
    weights = {"a": torch.randn(64, 64)}
    watch = SpectralMonitor(weights, overhead=0.02)
    assert "until the times are known" in watch.explain()
    kept: list[SpectralFrame] = []
    # Mostly some hundred steps; a machine that is busy may take one measurement for a long one.
    for step in range(20_000):
        time.sleep(2e-4)
        frame = watch.step(step)
        kept += [] if frame is None else [frame]
        if len(kept) == 3:
            break
    assert len(kept) == 3
    assert step > 2
    # The cadence that was in force is that between the frames.
    for before, after in itertools.pairwise(kept[1:]):
        assert after.step - before.step == after.every or watch.every != after.every
    assert kept[-1].to_dict()["every"] == kept[-1].every
    assert "chosen to take 0.02 of the time at most: a measurement takes" in watch.explain()
    with watch.paused():
        assert watch.step() is None
    fixed = SpectralMonitor(weights, every=4)
    assert fixed.every == 4
    assert "measured every 4 steps" in fixed.explain()


def test_a_monitor_takes_a_twentieth_of_the_time_unless_told_otherwise() -> None:
    run = Run(Cadence())
    run.steps(10_000, training=10e-3, cost=10e-3)
    assert run.cadence.every == 19
    assert run.share() <= 0.05 * 1.1
    assert run.due[0] == 0
    watch = SpectralMonitor({"a": torch.eye(3)})
    assert watch.step() is not None
    assert watch.frame is not None
    assert "chosen to take 0.05 of the time at most" in watch.explain()


def test_a_fixed_cadence_says_what_it_takes() -> None:
    run = Run(Cadence(every=2))
    run.steps(50, training=10e-3, cost=20e-3)
    assert run.due == list(range(0, 50, 2))
    told = run.cadence.described
    assert told.startswith("measured every 2 steps; a measurement takes 20 ms, a training step 10")
    assert "0.5 of the time; overhead=0.05 in place of every would measure every 38 steps" in told
    run = Run(Cadence(every=1))
    run.steps(50, training=10e-3, cost=1e-3)
    assert run.cadence.described.endswith("0.091 of the time")


class Counted:
    """A monitor that takes a second for each of its matrices, or a tenth with k."""

    def __init__(self, clock: list[float], count: int, k: int | None) -> None:
        self.clock, self.seconds = clock, count * (1.0 if k is None else 0.1)

    def step(self) -> None:
        self.clock[0] += self.seconds


def test_a_forecast_counts_every_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = [0.0], []
    monkeypatch.setattr(forecast_file.time, "perf_counter", lambda: clock[0])

    def make(weights: Any, k: int | None) -> Counted:
        made.append((len(weights), *next(iter(weights.values())).shape, k))
        return Counted(clock, len(weights), k)

    weights = {f"w{i}": torch.zeros(20, 50) for i in range(7)}
    watch = SpectralMonitor({**weights, "b": torch.zeros(50, 50)}, pairs=None, reference=None)
    told = forecast(watch.matrices, None, make)
    # Four copies stand for seven.
    assert made == [(4, 50, 20, None), (1, 50, 50, None), (4, 50, 20, 20), (1, 50, 50, 32)]
    assert told == Forecast(pytest.approx(8.0), pytest.approx(0.8))
    words = told.described(0.05)
    assert "a measurement takes about 8 s; 0.05 of the time allows" in words
    assert "every 1520 training steps of 100 ms" in words
    assert "cheaper: k=32, leading triplets alone, about 800 ms" in words
    # Of a large one, a smaller of the same proportions; its time grows with m n^2, m n with k.
    made.clear()
    large = SpectralMonitor({"a": torch.zeros(1, 1).expand(2000, 4000)}, k=1, pairs=None,
                            reference=None, method="randomized")  # fmt: skip
    told = forecast(large.matrices, None, make)
    assert made[0] == (1, 800, 400, None)
    assert told.seconds == pytest.approx(5 * 5 * 5)
    assert told.with_few == pytest.approx(0.1 * 5 * 5)
    assert "overhead=0.05 in place of every would allow" in told.described(None)


@pytest.mark.parametrize("method", ["tracked", "exact", "randomized"])
def test_the_cost_is_predicted_before_the_first_step(method: Any) -> None:
    weights = {f"w{i}": torch.randn(48, 32) for i in range(6)}
    watch = SpectralMonitor(weights, method=method)
    told = watch.explain()
    assert "predicted by a dry run on random matrices of these shapes: a measurement takes" in told
    for step in range(4):
        watch.step(step)
    assert "predicted" not in watch.explain()
    assert "a measurement takes" in watch.explain()


def test_paused_time_is_not_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(pace_file.time, "perf_counter", lambda: now)
    watch = SpectralMonitor({"a": torch.eye(3)}, overhead=0.5)
    for _ in range(5):
        now += 1.0
        watch.step()
    with watch.paused():
        now += 100.0
        watch.step()
    now += 100.0
    watch.step()
    assert watch._cadence.state()["training"] == pytest.approx(1.0)
    assert not math.isnan(watch._cadence.state()["cost"])


def test_what_the_device_tells_takes_the_place_of_the_hosts_clock() -> None:
    cadence = Cadence(overhead=0.1)
    for step in range(5):
        now = 0.001 * step
        cadence.enter(step, now)
        cadence.leave(step, now, 0.5 if step == 0 else None)
    assert "a measurement takes 500 ms, a training step 1 ms" in cadence.described
    cadence.trained(1.0)
    assert "a measurement takes 500 ms, a training step 1e+03 ms" in cadence.described
    cadence.enter(5, 0.005)
    cadence.trained(2.0)
    assert "a training step 1.05e+03 ms" in cadence.described
    assert not cadence.is_due(4)
    assert cadence.is_due(5)
