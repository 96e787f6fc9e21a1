"""Pictures: what is drawn is what was recorded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from spectral_monitor.figures import overviews, plots
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.reader import Run, load_run
from spectral_monitor.run.recorder import Recorder
from torch import nn


def record(folder: Path, steps: int = 6, seed: int = 0, **options: object) -> Run:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 16))
    watch = SpectralMonitor(model, recorder=Recorder(folder), **{"every": 1, **options})  # type: ignore[arg-type]
    for step in range(steps):
        share = step / max(steps - 1, 1)
        scalars = {"train_accuracy": share, "train_loss": 1.1 - share}
        if step % 2 == 0:
            scalars["val_accuracy"] = share / 2
        watch.step(10 * step, **scalars)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
    watch.close()
    return load_run(folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return record(tmp_path / "run")


def mesh(ax: Axes) -> QuadMesh:
    (found,) = [item for item in ax.collections if isinstance(item, QuadMesh)]
    return found


def bars(ax: Axes) -> list[str]:
    """Labels of the colour bars of the figure."""
    return [other.get_ylabel() for other in ax.figure.axes if other is not ax]


def render(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=40)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_errors(run: Run, tmp_path: Path) -> None:
    ax = plots.plot_errors(run)
    train, validation = ax.get_lines()
    np.testing.assert_array_equal(train.get_xdata(), run.steps)
    np.testing.assert_allclose(train.get_ydata(), 1 - run.scalars["train_accuracy"])
    # Validation was measured at every other step; its line crosses the gaps.
    np.testing.assert_array_equal(validation.get_xdata(), [0, 20, 40])
    (right,) = [other for other in ax.figure.axes if other is not ax]
    assert right.get_yscale() == "log"
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), run.scalars["train_loss"])
    legend = right.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "training error", "validation error", "training loss",
    ]  # fmt: skip
    assert ax.get_xlabel() == "training step"
    assert "error" in ax.get_ylabel()
    alone = plots.plot_errors(run, losses=False)
    assert len(alone.figure.axes) == 1
    render(ax.figure, tmp_path / "errors.png")


def test_losses_stand_alone_where_there_are_no_errors(run: Run) -> None:
    run.scalars = {"val/loss": run.scalars["train_loss"]}
    ax = plots.plot_errors(run, losses=False)
    assert ax.get_yscale() == "log"
    assert len(ax.get_lines()) == 1
    run.scalars = {"temperature": run.scalars["val/loss"]}
    with pytest.raises(ValueError, match="no error, accuracy or loss among the scalars"):
        plots.plot_errors(run)


def test_singular_values_are_coloured_by_index(run: Run) -> None:
    ax = plots.plot_singular_values(run)
    assert "1.self_attn.in_proj_weight" in ax.get_title()
    (lines,) = [item for item in ax.collections if isinstance(item, LineCollection)]
    values = run.singular_values["1.self_attn.in_proj_weight"]
    indices = np.asarray(lines.get_array())
    assert sorted(indices) == list(range(1, 9))
    for index, segment in zip(indices, lines.get_segments(), strict=True):
        np.testing.assert_allclose(segment[:, 0], run.steps)
        np.testing.assert_allclose(segment[:, 1], values[:, index - 1])
    assert indices[-1] == 1  # the leading value on top
    assert bars(ax) == ["index i of the singular value"]
    assert ax.get_ylim()[1] > values.max()
    other = plots.plot_singular_values(run, "0.weight")
    assert "0" in other.get_title()
    with pytest.raises(ValueError, match=r"no matrix 'x'; there are 0.weight"):
        plots.plot_singular_values(run, "x")


def test_effective_ranks_of_every_matrix(run: Run) -> None:
    ax = plots.plot_effective_rank(run)
    data = np.asarray(mesh(ax).get_array())
    assert data.shape == (len(run.matrices), len(run.steps))
    for row, name in zip(data, run.matrices, strict=True):
        S = run.singular_values[name][-1].astype(float)
        p = S / S.sum()
        assert row[-1] == pytest.approx(np.exp(-(p * np.log(p)).sum()) / len(S), rel=1e-5)
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        name.replace(".weight", "") for name in run.matrices
    ]
    assert "exp(H) / r" in bars(ax)[0]
    entropy = plots.plot_effective_rank(run, form="entropy", limit=1.0)
    np.testing.assert_allclose(
        np.asarray(mesh(entropy).get_array())[0],
        run.metrics["normalized_effective_rank"][run.matrices[0]],
    )
    assert mesh(entropy).get_clim() == (0.0, 1.0)
    with pytest.raises(ValueError, match="form: expected"):
        plots.plot_effective_rank(run, form="rank")


def test_alignment_has_the_first_index_on_top(run: Run) -> None:
    ax = plots.plot_alignment(run)
    pair = ("0.weight", "1.self_attn.in_proj_weight")
    np.testing.assert_allclose(np.asarray(mesh(ax).get_array()), run.alignment[pair].T)
    low, high = ax.get_ylim()
    assert low > high
    assert "0 → 1.self_attn.in_proj_weight" in ax.get_title()
    averaged = ("1.self_attn.in_proj_weight[q]", "1.self_attn.in_proj_weight[k]")
    heads = plots.plot_alignment(run, averaged)
    np.testing.assert_allclose(np.asarray(mesh(heads).get_array()), run.alignment[averaged].T)
    with pytest.raises(ValueError, match=r"no alignment 0.weight -> 2"):
        plots.plot_alignment(run, ("0.weight", "2"))


def test_agreement(run: Run) -> None:
    ax = plots.plot_agreement(run, "0.weight")
    np.testing.assert_allclose(np.asarray(mesh(ax).get_array()), run.agreement["0.weight"].T)
    run.agreement = {}
    with pytest.raises(ValueError, match=r"no agreement of '0.weight'"):
        plots.plot_agreement(run, "0.weight")


def test_time_is_to_scale_where_steps_are_irregular(run: Run) -> None:
    run.steps = np.array([0, 1, 2, 10, 100, 101])
    ax = plots.plot_alignment(run)
    edges = np.asarray(mesh(ax).get_coordinates())[0, :, 0]
    np.testing.assert_allclose(edges, [-0.5, 0.5, 1.5, 6, 55, 100.5, 101.5])


def test_given_axes_are_used_and_returned(run: Run) -> None:
    for draw in (
        plots.plot_errors,
        plots.plot_effective_rank,
        lambda run, ax: plots.plot_singular_values(run, None, ax),
        lambda run, ax: plots.plot_alignment(run, None, ax),
        lambda run, ax: plots.plot_agreement(run, None, ax),
    ):
        ax = Figure().subplots()
        assert draw(run, ax) is ax
        assert ax.get_title()


def test_figure_2_has_four_panels(run: Run, tmp_path: Path) -> None:
    figure = overviews.plot_run(run, title="a run")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(titles) == 4
    for title, words in zip(titles, ("Errors", "Singular", "Effective", "Alignment"), strict=True):
        assert title.startswith(words)
    render(figure, tmp_path / "figure2.png")


def test_nan_and_missing_panels_can_be_drawn(tmp_path: Path) -> None:
    weights = {"a": torch.full((4, 4), torch.nan), "b": torch.zeros(4, 4)}
    with Recorder(tmp_path) as recorder:
        watch = SpectralMonitor(weights, every=1, pairs=None, recorder=recorder)
        watch.step()
        one = load_run(tmp_path)
        render(overviews.plot_run(one), tmp_path / "one.png")
        watch.step()
    figure = overviews.plot_run(load_run(tmp_path))
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == ["no errors recorded", "no alignment recorded"]
    render(figure, tmp_path / "two.png")


def test_runs_are_compared_on_the_same_scales(run: Run, tmp_path: Path) -> None:
    other = record(tmp_path / "other", seed=1, steps=4)
    figure = overviews.plot_runs({"first": run, "second": other})
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert len(panels) == 8
    for index in (2, 3):
        assert mesh(panels[index]).get_clim() == mesh(panels[index + 4]).get_clim()
    assert panels[1].get_ylim() == panels[5].get_ylim()
    pair = ("0.weight", "1.self_attn.in_proj_weight")
    top = max(run.alignment[pair].max(), other.alignment[pair].max())
    assert mesh(panels[3]).get_clim()[1] == pytest.approx(top)
    render(figure, tmp_path / "compare.png")
    with pytest.raises(ValueError, match="at least one run"):
        overviews.plot_runs({})


def test_pyplot_is_not_needed() -> None:
    """Its global state keeps every figure alive and wants a display on some systems."""
    code = (
        "import spectral_monitor.figures.plots, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
