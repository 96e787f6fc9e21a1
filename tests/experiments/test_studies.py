"""The kit's summaries, arms, figures and studies, at toy size."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from experiments.kit.arms import Arm, Outcome, baseline, decomposed, mean_and_std
from experiments.kit.figures import accuracy_figure, rank_figure, stable_rank_figure
from experiments.kit.history import History, read_history, write_summary
from experiments.kit.machine import machine, save_figure
from experiments.kit.options import Options
from experiments.kit.run_folder import open_run_folder
from experiments.kit.settings import TrainingSettings
from experiments.kit.study import Study, read_outcomes, run_missing, run_study, study_parser
from experiments.kit.training import measured_steps, train
from tests.support.toy_task import CPU, SETTINGS, toy

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
    printed = capsys.readouterr().out
    assert "steps to 1 % gap" in printed
    assert summary["machines"] == [machine("cpu")]
    assert summary["machines"][0] in printed


def test_a_figure_names_the_machines_of_its_runs(tmp_path):
    figure = Figure()
    save_figure(figure, tmp_path / "a.png", [{"machine": m} for m in ("one", "other", "one")])
    assert [text.get_text() for text in figure.texts] == ["one; other"]
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("flag", ["--seeds", "--jobs"])
def test_a_study_of_nothing_is_refused(flag, capsys):
    for text, message in (("0", "0; expected at least 1"), ("x", "invalid int value: 'x'")):
        with pytest.raises(SystemExit):
            study_parser("toy", "A toy.", ["toy"]).parse_args([flag, text])
        assert f"argument {flag}: {message}" in capsys.readouterr().err
