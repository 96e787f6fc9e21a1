"""The kit's batches, updates, training loop, arms, figures and studies, at toy size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.device.streams import Streams
from torch import Tensor, nn

from experiments.kit.arms import Arm, Outcome, baseline, decomposed, mean_and_std
from experiments.kit.batches import Batches
from experiments.kit.checkpoint import seed_everything
from experiments.kit.figures import accuracy_figure, rank_figure, stable_rank_figure
from experiments.kit.gap import closed_at, is_closed
from experiments.kit.history import History, read_history, write_summary
from experiments.kit.options import Options
from experiments.kit.run_folder import open_run_folder
from experiments.kit.scores import scores
from experiments.kit.settings import TrainingSettings
from experiments.kit.study import Study, read_outcomes, run_missing, run_study, study_parser
from experiments.kit.training import Task, measured_steps, train
from experiments.kit.updates import EAGER_STEPS, Updates
from tests.support.device_steps import LateStreams
from tests.support.dispatched import NoReads

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(batch_size=8, max_steps=60, points=12, checkpoint_every=10)


def toy(seed: int = 0, settings: TrainingSettings = SETTINGS) -> Task:
    """A two-layer network on points of a plane, told apart by a line."""
    seed_everything(seed)
    x = torch.randn(96, 2)
    y = (x.sum(dim=1) > 0).long()
    model = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def loss(indices: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x[:64][indices]), y[:64][indices])

    def evaluate() -> dict[str, Tensor]:
        train_loss, train_accuracy = scores(model, x[:64], y[:64])
        _, test_accuracy = scores(model, x[64:], y[64:])
        return {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
        }

    batches = Batches(64, settings.batch_size, seed)
    return Task(model, optimizer, loss, evaluate, batches, lambda step: 0.02 / (1 + step))


# --- batches -----------------------------------------------------------------------------------


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


# --- measured steps and the gap ----------------------------------------------------------------


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


# --- updates -----------------------------------------------------------------------------------


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


# --- the loop ----------------------------------------------------------------------------------


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


# --- summaries, arms, figures ------------------------------------------------------------------


def options(out: Path, *, seed: int = 0, **overrides: Any) -> Options[TrainingSettings]:
    settings = replace(SETTINGS, **overrides)
    return Options("toy", settings, overrides, seed, out, None, CPU, "resume")


def test_a_summary_and_what_is_read_back(tmp_path):
    task = toy()
    training = train(task, SETTINGS, tmp_path, CPU, title="toy")
    told = write_summary("toy", options(tmp_path), tmp_path, training, {"claims": []})
    assert told == json.loads((tmp_path / "summary.json").read_text())
    assert told["parameters"] == 2 * 12 + 12 + 12 * 2 + 2
    assert told["shapes"] == {"0.weight": [12, 2], "3.weight": [2, 12]}
    history = read_history(tmp_path)
    assert history.steps.tolist() == measured_steps(60, 12)
    assert history.final("test_accuracy") == told["final"]["test_accuracy"]
    assert history.best("test_accuracy") == told["best_test_accuracy"]
    values = torch.linalg.svdvals(task.model[0].weight.detach())
    expected = (values.square().sum() / values[0] ** 2 / 2).item()
    assert history.stable_ranks["0.weight"][-1] == pytest.approx(expected, rel=1e-5)


def made(closed: int | None, level: float = 1.0) -> History:
    """A run of 40 points whose test accuracy rises at ``closed``; it ends there."""
    steps = np.array(measured_steps(1000, 40))
    steps = np.union1d(steps[steps < (closed or 1000)], closed or 1000)
    test = np.where(steps >= (closed or 2000), level, 0.1)
    return History(
        steps,
        {"train_accuracy": np.clip(steps / 50, 0, 1), "test_accuracy": test},
        {"a.weight": 1 / (1 + steps / 100), "b.weight": np.full(len(steps), 0.4)},
        {
            "gap_closed_at_step": closed,
            "steps": int(steps[-1]),
            "seconds": 1.0,
            "ms_per_step": 2.0,
            "parameters": 10,
        },
    )


def outcomes() -> dict[str, Outcome]:
    arms = [
        (baseline(), {0: made(1000), 1: made(1000)}),
        (decomposed("all", 1.0), {0: made(100), 1: made(190)}),
        (decomposed("all", 0.5), {0: made(290), 1: made(None)}),
        (decomposed("attention", 0.5), {0: made(None), 1: made(None)}),
    ]
    return {arm.label: Outcome(arm, runs) for arm, runs in arms}


def test_arms_name_themselves_and_their_options():
    arm = decomposed("feed_forward", 0.125, weight_decay=0.1, stop_at_gap=False, limit=None)
    assert arm.label == "feed forward 0.125"
    assert arm.series == "feed_forward"
    assert arm.argv() == [
        "--decompose=feed_forward", "--rank=0.125", "--weight-decay=0.1", "--no-stop-at-gap",
        "--limit=none",
    ]  # fmt: skip
    assert baseline().is_baseline
    assert baseline().argv() == ["--decompose=none"]


def test_outcomes_are_means_over_seeds():
    found = outcomes()
    assert found["all 1"].mean_gap_step() == 145
    assert found["all 0.5"].mean_gap_step() is None
    assert found["all 0.5"].gap_steps() == {0: 290}
    curves = found["all 1"].curves("test_accuracy")
    assert curves.shape == (2, len(found["all 1"].steps))
    # The run that ended first keeps its last value.
    assert curves[0, -1] == 1.0
    summary = found["all 0.5"].summary()
    assert summary["steps_to_gap"] == {"mean": 290.0, "std": 0.0}
    assert summary["runs_that_closed_the_gap"] == 1
    assert summary["gap_closed_at_step"] == {"0": 290, "1": None}
    json.dumps(summary, allow_nan=False)


def test_mean_and_standard_deviation():
    assert mean_and_std([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5)}
    assert mean_and_std([5.0]) == {"mean": 5.0, "std": 0.0}
    assert mean_and_std([]) is None


def test_accuracy_figure_draws_every_arm_once_and_the_baseline_everywhere():
    panels = accuracy_figure(outcomes()).axes
    assert [ax.get_title() for ax in panels] == ["all", "attention"]
    labels = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in panels]
    assert labels == [["baseline", "all 1", "all 0.5"], ["baseline", "attention 0.5"]]
    # A star where every run closed the gap.
    stars = [[ln for ln in ax.get_lines() if ln.get_marker() == "*"] for ax in panels]
    assert [[line.get_xdata()[0] for line in each] for each in stars] == [[1000, 145], [1000]]
    # One rank has one colour in all panels.
    colours = [{ln.get_label(): ln.get_color() for ln in ax.get_lines()} for ax in panels]
    assert colours[0]["all 0.5"] == colours[1]["attention 0.5"] != colours[0]["all 1"]
    assert {each["baseline"] for each in colours} == {"black"}


def test_many_groups_of_layers_are_drawn_in_rows_of_four():
    arms = [decomposed(f"group{i}", 0.5) for i in range(6)]
    figure = accuracy_figure({arm.label: Outcome(arm, {0: made(100)}) for arm in arms})
    assert [ax.get_title() for ax in figure.axes] == [arm.series for arm in arms]
    places = [ax.get_subplotspec() for ax in figure.axes]
    assert [(at.rowspan.start, at.colspan.start) for at in places][3:5] == [(0, 3), (1, 0)]


def test_names_of_many_layers_are_not_over_each_other():
    run = made(100)
    ranks = {f"layers.{i}.weight": run.stable_ranks["a.weight"] for i in range(129)}
    arm = baseline()
    figure = stable_rank_figure(Outcome(arm, {0: replace(run, stable_ranks=ranks)}), [])
    heat = figure.axes[1]
    names = [text.get_text() for text in heat.get_yticklabels()]
    assert names == [f"layers.{i}" for i in range(0, 129, 6)]
    assert list(heat.get_yticks()) == list(range(1, 130, 6))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in heat.get_yticklabels()]
    assert all(a.y0 >= b.y1 for a, b in pairwise(boxes))


def test_stable_rank_figure_has_layers_by_points_and_the_distance():
    found = outcomes()
    figure = stable_rank_figure(found["baseline"], [found["all 1"]])
    above, _, heat, other, below, distance, bar = figure.axes
    assert heat.collections[0].get_array().shape == (2, len(found["baseline"].steps))
    assert [text.get_text() for text in heat.get_yticklabels()] == ["a", "b"]
    assert above.get_title() == "baseline"
    assert not below.get_visible()
    assert distance.get_visible()
    # Layer a alone differs, where the arm has ended and the baseline goes on.
    a = found["baseline"].stable_ranks()["a.weight"]
    held = found["all 1"].stable_ranks()["a.weight"][-1]
    assert distance.get_lines()[0].get_ydata()[-1] == pytest.approx(abs(a[-1] - held))
    assert other.collections[0].get_clim() == heat.collections[0].get_clim()
    assert "stable rank" in bar.get_ylabel()


def test_rank_figure_has_a_line_for_each_group_of_layers():
    (ax,) = rank_figure(outcomes()).axes
    lines = {container.get_label(): container for container in ax.containers}
    assert list(lines["all"][0].get_xdata()) == [50, 100]
    assert list(lines["all"][0].get_ydata()) == pytest.approx([55, 100])
    assert "baseline" in [text.get_text() for text in ax.get_legend().get_texts()]


# --- studies -----------------------------------------------------------------------------------


def finished_study(tmp_path: Path, data: Path | None = None) -> Study:
    """Two arms and two seeds, of which one run is finished."""

    def parse(argv: Any) -> Options[TrainingSettings]:
        words = list(argv)
        given = dict(word[2:].split("=") for word in words if "=" in word)
        overrides = {k: v for k, v in given.items() if v != "none"}
        seed = int(words[words.index("--seed") + 1])
        return replace(options(tmp_path, seed=seed), overrides=overrides, data=data)

    arms = [baseline(), Arm("other", "x", 0.5, {"decompose": "all"})]
    study = Study("toy", parse, "toy", arms, (0, 1), out=tmp_path)
    made = study.parse(study.argv(arms[1], 1))
    folder = open_run_folder("toy", made)
    if not study.is_finished(arms[1], 1):
        write_summary("toy", made, folder, train(toy(1), SETTINGS, folder, CPU, title="toy"))
    return study


def test_a_study_reads_the_runs_that_are_finished(tmp_path):
    study = finished_study(tmp_path)
    assert study.run_folder(study.arms[1], 1) != study.run_folder(study.arms[0], 1)
    found = read_outcomes(study)
    assert list(found) == ["other"]
    assert list(found["other"].runs) == [1]


def test_finished_runs_of_other_settings_or_data_are_not_compared(tmp_path, monkeypatch):
    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "experiments.kit.study._run_one", lambda _, arm, seed: tried.append((arm.label, seed))
    )
    study = finished_study(tmp_path, tmp_path / "a/digits")
    run_missing(study)
    assert tried == [("baseline", 0), ("other", 0), ("baseline", 1)]

    def elsewhere(argv: Any) -> Options[TrainingSettings]:
        return replace(study.parse(argv), data=tmp_path / "b/digits")

    def since(argv: Any) -> Options[TrainingSettings]:
        return replace(study.parse(argv), settings=replace(SETTINGS, max_steps=70))

    for parse in (elsewhere, since):
        other = replace(study, parse=parse)
        assert other.run_folder(study.arms[1], 1) == study.run_folder(study.arms[1], 1)
        assert read_outcomes(other) == {}
        # Tried, for the run says what differs.
        tried.clear()
        run_missing(other)
        assert ("other", 1) in tried


def test_what_was_measured_is_told_before_it_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.kit.study._run_one", lambda *_: None)
    study = finished_study(tmp_path)

    def figures(_: Any) -> Any:
        raise ImportError("no matplotlib")

    with pytest.raises(ImportError):
        run_study(study, lambda _: [], figures)
    summary = json.loads((study.folder / "summary.json").read_text())
    assert [arm["label"] for arm in summary["arms"]] == ["other"]
    assert "steps to 1 % gap" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--seeds", "--jobs"])
def test_a_study_of_nothing_is_refused(flag, capsys):
    for text, message in (("0", "0; expected at least 1"), ("x", "invalid int value: 'x'")):
        with pytest.raises(SystemExit):
            study_parser("toy", "A toy.", ["toy"]).parse_args([flag, text])
        assert f"argument {flag}: {message}" in capsys.readouterr().err
