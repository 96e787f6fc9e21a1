"""Lines in their bounds, scores beside chance, a tracker's work: what is drawn is what was said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from spectral_monitor.figures import line_plots, overviews, panels, plots
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.reader import Run, load_run
from spectral_monitor.run.recorder import Recorder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    generator = torch.Generator().manual_seed(0)
    weights = {"up.weight": torch.randn(40, 30, generator=generator),
               "down.weight": torch.randn(20, 40, generator=generator)}  # fmt: skip
    with Recorder(tmp_path, precision="full") as recorder:
        watch = SpectralMonitor(weights, every=1, method="randomized", k=8,
                                watch=("weights", "updates"), recorder=recorder)  # fmt: skip
        for _ in range(5):
            watch.step(train_loss=1.0)
            for name, A in weights.items():
                weights[name] = A + 0.1 * torch.randn(A.shape, generator=generator)
    return load_run(tmp_path)


def bands(ax: Axes) -> list[PolyCollection]:
    return [item for item in ax.collections if isinstance(item, PolyCollection)]


def dashed(ax: Axes) -> list[float]:
    return [float(np.asarray(line.get_ydata())[0]) for line in ax.get_lines()
            if line.get_linestyle() == "--"]  # fmt: skip


@pytest.mark.parametrize("metric", ["effective_rank", "stable_rank"])
def test_metrics_lie_in_their_bands(run: Run, metric: str) -> None:
    ax = line_plots.plot_metric(run, metric)
    assert [line.get_label() for line in ax.get_lines()] == ["up", "down"]
    largest = 0.0
    for name, line, band in zip(run.weights, ax.get_lines(), bands(ax), strict=True):
        values, bounds = run.metrics[metric][name], run.bound(metric, name)
        assert bounds is not None
        np.testing.assert_allclose(line.get_ydata(), values)
        corners = band.get_paths()[0].vertices[:, 1]
        assert corners.max() == pytest.approx((values + bounds).max())
        assert corners.min() == pytest.approx((values - bounds).min())
        largest = max(largest, (bounds / values).max())
    assert f"bounds ≤ {100 * largest:.2g} %" in ax.get_title()
    # The values fill the panel, however wide the bounds are.
    low, high = ax.get_ylim()
    shown = np.concatenate([run.metrics[metric][name] for name in run.weights])
    assert np.ptp(shown) > 0.7 * (high - low)
    with pytest.raises(ValueError, match=r"no metric 'x'; there are effective_rank"):
        line_plots.plot_metric(run, "x")


def test_bands_that_could_not_be_seen_are_drawn_wider(run: Run) -> None:
    title = line_plots.plot_metric(run, "stable_rank").get_title()
    assert "drawn" not in title
    spread = np.ptp([run.metrics["stable_rank"][name] for name in run.weights])
    for name in run.weights:
        run.metrics["bound"][f"stable_rank/{name}"] = np.full(5, 3e-4 * spread)
    ax = line_plots.plot_metric(run, "stable_rank")
    assert ax.get_title().endswith(", drawn 100 times as wide")
    for name, band in zip(run.weights, bands(ax), strict=True):
        top = run.metrics["stable_rank"][name].max() + 3e-2 * spread
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(top)
    # Rounding is no band, however wide it is drawn.
    for name in run.weights:
        run.metrics["bound"][f"stable_rank/{name}"] = np.full(5, 1e-9 * spread)
    assert "drawn" not in line_plots.plot_metric(run, "stable_rank").get_title()


def test_exact_runs_have_no_bands(tmp_path: Path) -> None:
    with Recorder(tmp_path, precision="full") as recorder:
        watch = SpectralMonitor(
            {"a": torch.randn(4, 4)}, every=1, method="exact", recorder=recorder
        )
        watch.step()
    run = load_run(tmp_path)
    ax = line_plots.plot_metric(run)
    assert not bands(ax)
    assert "bounds" not in ax.get_title()
    assert not line_plots.has_bounds(run)
    # The level of rounding is known without a record.
    level = 8 * np.finfo(np.float32).eps * run.singular_values["a"][:, :1]
    np.testing.assert_allclose(run.value_bounds("a"), np.repeat(level, 4, axis=1))


def test_singular_values_have_bands_where_they_can_be_seen(run: Run) -> None:
    run.singular_value_bounds = {
        name: 0.1 * np.asarray(values) for name, values in run.singular_value_bounds.items()
    }
    ax = plots.plot_singular_values(run, "up.weight")
    assert len(bands(ax)) == 8
    assert "bounds ≤" in ax.get_title()
    run.singular_value_bounds = {
        name: 1e-5 * np.asarray(values) for name, values in run.singular_value_bounds.items()
    }
    narrow = plots.plot_singular_values(run, "up.weight")
    assert not bands(narrow)
    assert "bounds ≤" in narrow.get_title()
    # Nor where they would fill the panel.
    run.singular_value_bounds = {
        name: np.full(values.shape, 100.0) for name, values in run.singular_value_bounds.items()
    }
    assert not bands(plots.plot_singular_values(run, "up.weight"))


def test_largest_bounds_on_a_log_scale(run: Run) -> None:
    ax = line_plots.plot_bounds(run)
    assert ax.get_yscale() == "log"
    for name, line in zip(run.weights, ax.get_lines(), strict=True):
        share = run.value_bounds(name).max(axis=1) / run.singular_values[name][:, 0]
        np.testing.assert_allclose(line.get_ydata(), share)
    # A new solution, after which a bound is rounding, does not squeeze the rest of the panel.
    level = ax.get_ylim()[0]
    shares = run.value_bounds("up.weight").copy()
    shares[2] = 1e-9
    run.singular_value_bounds = {**run.singular_value_bounds, "up.weight": shares}
    assert line_plots.plot_bounds(run).get_ylim()[0] > 0.1 * level


def test_work_of_a_tracker(run: Run) -> None:
    with pytest.raises(ValueError, match="no work of a tracker"):
        line_plots.plot_work(run)
    run.work = {
        "solved": np.array([2.0, 0, 0, 1, 0]),
        "rotated three times": np.array([0.0, 0, 0, 0, 0]),
        "kept": np.array([0.0, 2, 1, 0, 2]),
        "two passes": np.array([0.0, 0, 1, 1, 0]),
    }
    ax = line_plots.plot_work(run)
    assert "1 solved anew after the first step" in ax.get_title()
    legend = ax.get_legend()
    assert legend is not None
    # The least work first, words of other trackers last.
    assert [text.get_text() for text in legend.get_texts()] == [
        "kept: 1 a step", "rotated three times: 0 a step", "solved: 0.6 a step",
        "two passes: 0.4 a step",
    ]  # fmt: skip
    tops = [band.get_paths()[0].vertices[:, 1].max() for band in bands(ax)]
    assert tops == [2, 2, 2, 2]
    assert len(line_plots.plot_certainty(run).axes) == 4
    run.work = {}
    assert len(line_plots.plot_certainty(run).axes) == 3


def test_long_runs_are_drawn_in_groups_that_lose_no_peak(run: Run) -> None:
    count = 2000
    run.steps = np.arange(count)
    run.singular_values = {"a": np.ones((count, 2))}
    bounds = np.full((count, 2), 1e-6)
    bounds[777] = 1e-3
    run.singular_value_bounds = {"a": bounds}
    (line,) = line_plots.plot_bounds(run).get_lines()
    shown = np.asarray(line.get_ydata())
    assert len(shown) == 300
    assert shown.max() == pytest.approx(1e-3)
    run.work = {"kept": np.ones(count)}
    (band,) = bands(line_plots.plot_work(run))
    assert band.get_paths()[0].vertices[:, 1].max() == 1


def test_scores_stand_beside_chance(run: Run) -> None:
    ax = line_plots.plot_alignment_scores(run)
    assert dashed(ax) == [run.chance.alignment["up.weight", "down.weight"]]
    np.testing.assert_allclose(
        ax.get_lines()[0].get_ydata(), run.metrics["alignment_score"]["up.weight -> down.weight"]
    )
    ax = line_plots.plot_agreement_scores(run)
    assert dashed(ax) == list(run.chance.agreement.values())
    assert ax.get_title() == "Agreement score, dashed: by chance"
    ax = line_plots.plot_overlaps(run)
    assert dashed(ax) == [8 / 40, 8 / 20]
    np.testing.assert_allclose(
        ax.get_lines()[0].get_ydata(), np.asarray(run.overlap["up.weight[update]"])[:, 0]
    )
    assert len(line_plots.plot_scores(run).axes) == 3
    run.alignment, run.overlap = {}, {}
    assert len(line_plots.plot_scores(run).axes) == 1
    run.agreement = {}
    with pytest.raises(ValueError, match="no alignment, agreement or overlap"):
        line_plots.plot_scores(run)


def test_clusters_of_one_matrix(run: Run) -> None:
    figure = overviews.plot_clusters(run, "up.weight")
    single, whole, flags = figure.axes[:3]
    assert "by chance" in single.get_title()
    assert whole.get_title() == "Agreement of up in clusters"
    share = float(np.mean(run.identifiable["up.weight"]))
    assert flags.get_title() == f"Identifiable vectors of up: {share:.0%}"
    run.identifiable = {}
    with pytest.raises(ValueError, match=r"which vectors of 'up\.weight' are identifiable"):
        plots.plot_identifiable(run, "up.weight")


def test_given_axes_are_used(run: Run) -> None:
    run.work = {"kept": np.ones(5)}
    for draw in (line_plots.plot_bounds, line_plots.plot_work, line_plots.plot_overlaps,
                 line_plots.plot_alignment_scores, line_plots.plot_agreement_scores):  # fmt: skip
        ax = panels.grid(1, 1).axes[0]
        assert draw(run, ax) is ax
        assert ax.get_xlabel() == "training step"
