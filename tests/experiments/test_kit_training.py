"""The kit's batches, updates and training loop, at toy size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.device.streams import Streams
from torch import nn

from experiments.kit.batches import Batches
from experiments.kit.checkpoint import seed_everything
from experiments.kit.gap import closed_at, is_closed
from experiments.kit.scores import scores
from experiments.kit.training import Task, measured_steps, train
from experiments.kit.updates import EAGER_STEPS, Updates
from tests.support.device_steps import LateStreams
from tests.support.dispatched import NoReads
from tests.support.toy_task import CPU, SETTINGS, toy


def test_an_epoch_sees_every_example_at_most_once():
    batches = Batches(examples=50, size=8, seed=3)
    assert (batches.steps_per_epoch, batches.width) == (6, 8)
    table = batches.table(0)
    assert table.shape == (batches.steps_per_table, 8)
    for epoch in table.view(-1, 48):
        assert len(epoch.unique()) == 48
    assert table.min() == 0
    assert table.max() == 49


def test_tables_depend_on_the_seed_and_their_number_alone():
    torch.manual_seed(1)
    first = Batches(50, 8, seed=3).table(2)
    torch.manual_seed(2)
    assert torch.equal(first, Batches(50, 8, seed=3).table(2))
    assert not torch.equal(first, Batches(50, 8, seed=3).table(1))
    assert not torch.equal(first, Batches(50, 8, seed=4).table(2))


def test_a_batch_larger_than_the_set_is_the_set():
    batches = Batches(examples=5, size=8, seed=0)
    assert batches.table(0)[7].sort().values.tolist() == [0, 1, 2, 3, 4]


def test_batches_with_replacement_repeat_examples():
    batches = Batches(examples=4, size=8, seed=0, replacement=True)
    table = batches.table(0)
    assert table.shape[1] == 8
    assert torch.bincount(table.flatten(), minlength=4).min() > 0.9 * table.numel() / 4
    assert not torch.equal(table[0].sort().values, table[1].sort().values)


def test_batches_of_nothing_are_refused():
    with pytest.raises(ValueError, match="0 examples in batches of 8"):
        Batches(0, 8, seed=0)


@pytest.mark.parametrize(("last", "points"), [(10_000, 200), (10**6, 200), (500, 200), (7, 3)])
def test_measured_steps_are_so_many_and_even_in_log_steps(last, points):
    steps = measured_steps(last, points)
    assert (steps[0], steps[1], steps[-1]) == (0, 1, last)
    assert steps == sorted(set(steps))
    assert points + 1 <= len(steps) <= points + 3
    ratios = np.diff(np.log(steps[len(steps) // 2 :]))
    assert ratios.max() < 2 * ratios.min() + 2 / steps[len(steps) // 2]


def test_short_runs_are_measured_at_every_step():
    assert measured_steps(5, 200) == [0, 1, 2, 3, 4, 5]


def test_the_gap_counts_once_the_training_set_is_learned():
    steps = np.array([0, 1, 2, 3])
    train_accuracy = np.array([0.01, 0.6, 0.995, 0.995])
    test = np.array([0.01, 0.6, 0.984, 0.985])
    assert closed_at(steps, train_accuracy, test, level=0.99) == 3
    assert closed_at(steps, train_accuracy, test, level=0.5) == 1
    assert closed_at(steps[:3], train_accuracy[:3], test[:3], level=0.99) is None
    assert is_closed(0.995, 0.985, 0.99)
    assert not is_closed(0.995, 0.984, 0.99)
    assert not is_closed(0.98, 0.98, 0.99)
    assert closed_at(steps, np.full(4, np.nan), test, level=0.99) is None


def test_scores_are_those_of_one_pass_in_evaluation_mode():
    seed_everything(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    x, y = torch.randn(50, 3), torch.randint(4, (50,))
    loss, accuracy = scores(model, x, y, chunk=7)
    assert model.training
    logits = model.eval()(x)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert accuracy.item() == (logits.argmax(-1) == y).double().mean().item()
    # Tokens of texts: one target for each position.
    tokens, targets = torch.randn(6, 5, 3), torch.randint(4, (6, 5))
    expected = (model(tokens).argmax(-1) == targets).double().mean().item()
    assert scores(model, tokens, targets, chunk=4)[1].item() == pytest.approx(expected)


def updates_of(task: Task, streams: Streams | None = None) -> Updates:
    return Updates(task.loss, task.optimizer, task.batches, task.rate, CPU, streams)


def test_an_update_reads_no_number():
    updates = updates_of(toy())
    updates.run(0, 1)
    with NoReads():
        updates.one()


def test_the_check_catches_a_read():
    x = torch.ones(3)
    reads: list[Callable[[], object]] = [x.sum().item, x.nonzero, lambda: bool(x.any())]
    for read in reads:
        with pytest.raises(AssertionError), NoReads():
            read()


def test_a_recorded_update_gives_the_numbers_of_an_eager_one():
    """Recorded once, after the steps that prepare it, and replayed from then on."""
    eager, recorded = toy(), toy()
    rng = torch.get_rng_state()
    updates_of(eager).run(0, 300)
    torch.set_rng_state(rng)
    streams = LateStreams()
    updates_of(recorded, streams).run(0, 300)
    assert streams.log.count("record") == 1
    assert streams.log.count("replay") == 300 - EAGER_STEPS
    assert streams.waits == 0
    for a, b in zip(eager.model.parameters(), recorded.model.parameters(), strict=True):
        assert torch.equal(a, b)


class Accelerator(LateStreams):
    """Streams of a device that torch's optimizers take to be capturing while work is recorded."""

    type = "cuda"

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.optimizer: Any = optimizer
        self.capturing = False

    def is_capturing(self) -> bool:
        return self.capturing

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        self.capturing = True
        self.optimizer._accelerator_graph_capture_health_check()
        self.capturing = False
        return super().recorded(work)


@pytest.mark.filterwarnings("error")
def test_optimizers_take_no_offence_at_being_recorded(monkeypatch):
    task = toy()
    for _ in range(2):
        # The second time as after a resume, from a state that was recorded.
        device = Accelerator(task.optimizer)
        with monkeypatch.context() as patch:
            patch.setattr(torch.accelerator, "current_accelerator", lambda d=device, **_: d)
            patch.setattr(torch.accelerator, "current_stream", lambda d=device: d)
            updates_of(task, device).run(0, EAGER_STEPS + 1)
            task.optimizer.param_groups[0]["capturable"] = False
            device.capturing = True
            with pytest.raises(RuntimeError, match="capturable is False"):
                task.optimizer.step()
            task.optimizer.param_groups[0]["capturable"] = True
        assert device.log.count("record") == 1


def test_updates_are_those_of_an_ordinary_loop():
    task, plain = toy(), toy()
    rng = torch.get_rng_state()
    # Beyond the end of the first table.
    last = task.batches.steps_per_table + 5
    updates = updates_of(task)
    updates.run(0, 7)
    updates.run(7, last)
    torch.set_rng_state(rng)
    rows = torch.cat([plain.batches.table(0), plain.batches.table(1)])
    for step in range(last):
        plain.optimizer.param_groups[0]["lr"] = plain.rate(step)
        plain.optimizer.zero_grad()
        plain.loss(rows[step]).backward()
        plain.optimizer.step()
    for a, b in zip(task.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "overhead"} for line in lines]


def test_a_resumed_run_has_the_numbers_of_one_that_went_through(tmp_path, monkeypatch):
    whole = train(toy(), SETTINGS, tmp_path / "whole", CPU, title="toy")
    task = toy()
    calls = []

    def killed() -> dict[str, Any]:
        calls.append(0)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return dict(task_evaluate())

    task_evaluate = task.evaluate
    with pytest.raises(KeyboardInterrupt):
        train(replace(task, evaluate=killed), SETTINGS, tmp_path / "cut", CPU, title="toy")
    assert 0 < rows_of(tmp_path / "cut")[-1]["step"] < 60
    assert (tmp_path / "cut/checkpoint.pt").exists()
    again = train(toy(), SETTINGS, tmp_path / "cut", CPU, title="toy")
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_may_end_when_the_gap_is_closed(tmp_path):
    settings = replace(SETTINGS, stop_at_gap=True, gap_level=0.8, max_steps=2000, points=60)
    task = toy(settings=settings)
    measured = iter(range(1000))

    def evaluate() -> dict[str, float]:
        count = next(measured)
        return {"train_accuracy": 0.9, "test_accuracy": 0.9 if count >= 6 else 0.5}

    training = train(replace(task, evaluate=evaluate), settings, tmp_path, CPU, title="toy")
    rows = rows_of(tmp_path)
    assert len(rows) == 7
    assert training.step == rows[-1]["step"] == measured_steps(2000, 60)[6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"points": 0}, "points is 0"),
        ({"rank": 1.5}, "rank is 1.5; expected 0 < rank <= 1"),
        ({"gap_level": 0.0}, "gap_level is 0.0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)
