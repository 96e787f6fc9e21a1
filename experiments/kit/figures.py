"""Pictures of a study, in the manner of "Decomposed Learning and Grokking"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from spectral_monitor.figures.panels import grid, short
from spectral_monitor.step.frame import Array

from experiments.kit.arms import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Figures: TypeAlias = Mapping[str, Figure]
else:
    Figures = Mapping[str, Any]

# Panels beside each other, and layers that have a name beside a heat map.
_COLUMNS, _NAMES = 4, 22
_BASELINE = "black"
_HELD, _OTHER = "#4c72b0", "#dd5f32"


def accuracy_figure(outcomes: Mapping[str, Outcome]) -> Figure:
    """Accuracy against log steps, a panel for each series (Figures 3 to 10).

    Training accuracy is dotted, test accuracy solid, a colour for each rank, the baseline black;
    means over seeds, with the standard deviation of the test accuracy as a band. A star marks
    the mean step at which the generalisation gap closed, where it did in every run.
    """
    base, series = _split(outcomes)
    panels = series or {"": []}
    columns = min(_COLUMNS, len(panels))
    figure = grid(-(-len(panels) // columns), columns, width=5.6, height=4.6)
    for ax in figure.axes[len(panels) :]:
        ax.remove()
    ranks = sorted({outcome.arm.rank for outcome in outcomes.values() if outcome.arm.rank})
    for ax, (name, members) in zip(figure.axes, panels.items(), strict=True):
        if base is not None:
            _accuracy_lines(ax, base, _BASELINE)
        for outcome in members:
            rank = outcome.arm.rank
            _accuracy_lines(ax, outcome, f"C{ranks.index(rank) % 10}" if rank else _BASELINE)
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel("optimizer step")
        ax.set_ylabel("accuracy (dotted: training, solid: test)")
        ax.set_title(name.replace("_", " "))
        ax.legend(fontsize="small", loc="best")
    return figure


def stable_rank_figure(base: Outcome, others: Sequence[Outcome]) -> Figure:
    """Normalised stable ranks, layers by measured points, an arm in each column (Figure 20).

    Above each heat map the test (solid) and training accuracy (dotted) of the baseline, blue,
    and of the arm, orange; below it the Euclidean distance of the arm's stable ranks to those of
    the baseline. The horizontal axis is the index of the measured point, not linear in steps.
    """
    arms = [base, *others]
    figure = grid(3, len(arms), width=4.6, height=2.6)
    panels = np.array(figure.axes).reshape(3, len(arms))
    steps = max((arm.steps for arm in arms), key=len)
    top = max(float(np.nanmax(values)) for arm in arms for values in arm.stable_ranks().values())
    for column, arm in zip(panels.T, arms, strict=True):
        above, map_, below = column
        _accuracy_over_points(above, base, arm, len(steps))
        mesh = _stable_rank_map(map_, arm, len(steps), top)
        if arm is base:
            # Its distance to itself is not worth a panel.
            below.set_visible(False)
        else:
            below.plot(_distance(base, arm, len(steps)), color=_OTHER)
            below.set_ylabel("distance to baseline")
        lowest = map_ if arm is base else below
        for ax in column:
            ax.set_xlim(0, len(steps))
            _step_ticks(ax, steps, labelled=ax is lowest)
    figure.colorbar(mesh, ax=list(panels[1]), pad=0.01).set_label("stable rank / min(m, n)")
    return figure


def rank_figure(outcomes: Mapping[str, Outcome], scalar: str = "test_accuracy") -> Figure:
    """Best accuracy against the share of the full rank, a line for each series (Figure 24).

    Means over seeds with standard deviations; the baseline is a dashed line.
    """
    base, series = _split(outcomes)
    figure = grid(1, 1, width=6.4, height=4.8)
    (ax,) = figure.axes
    for name, members in series.items():
        ordered = sorted(members, key=lambda outcome: outcome.arm.rank or 0.0)
        values = [100 * outcome.bests(scalar) for outcome in ordered]
        ax.errorbar(
            [100 * (outcome.arm.rank or 0.0) for outcome in ordered],
            [float(v.mean()) for v in values],
            [_deviation(v) for v in values],
            marker="o",
            capsize=3,
            label=name.replace("_", " "),
        )
    if base is not None:
        level = 100 * float(base.bests(scalar).mean())
        ax.axhline(level, color=_BASELINE, linestyle="--", label="baseline")
    ax.set_xlabel("rank, % of full")
    ax.set_ylabel("best " + scalar.replace("_", " ") + ", %")
    ax.legend(fontsize="small", loc="best")
    return figure


def _split(
    outcomes: Mapping[str, Outcome],
) -> tuple[Outcome | None, dict[str, list[Outcome]]]:
    """The baseline, and the others by series."""
    series: dict[str, list[Outcome]] = {}
    base = None
    for outcome in outcomes.values():
        if outcome.arm.is_baseline:
            base = base or outcome
        else:
            series.setdefault(outcome.arm.series, []).append(outcome)
    return base, series


def _accuracy_lines(ax: Axes, outcome: Outcome, colour: str) -> None:
    # Step 0 has no place on a logarithmic axis.
    steps = outcome.steps[1:]
    train, test = (outcome.curves(name)[:, 1:] for name in ("train_accuracy", "test_accuracy"))
    mean = test.mean(axis=0)
    ax.plot(steps, train.mean(axis=0), color=colour, linestyle=":", linewidth=1.2)
    ax.plot(steps, mean, color=colour, linewidth=1.4, label=outcome.arm.label)
    if len(test) > 1:
        std = test.std(axis=0, ddof=1)
        ax.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    closed = outcome.mean_gap_step()
    if closed is not None:
        height = float(np.interp(closed, steps, mean))
        ax.plot([closed], [height], marker="*", markersize=13, color=colour, linestyle="none",
                markeredgecolor="white")  # fmt: skip


def _accuracy_over_points(ax: Axes, base: Outcome, arm: Outcome, points: int) -> None:
    shown = [(base, _HELD)] if arm is base else [(base, _HELD), (arm, _OTHER)]
    for outcome, colour in shown:
        for scalar, style in (("train_accuracy", ":"), ("test_accuracy", "-")):
            line = _held(outcome.curves(scalar).mean(axis=0), points)
            ax.plot(line, color=colour, linestyle=style, linewidth=1.2)
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("accuracy")
    ax.set_title(arm.arm.label)


def _stable_rank_map(ax: Axes, arm: Outcome, points: int, top: float) -> Any:
    ranks = arm.stable_ranks()
    rows = np.stack([_held(values, points) for values in ranks.values()])
    mesh = ax.pcolormesh(
        np.arange(points + 1), np.arange(len(rows) + 1) + 0.5, rows, cmap="viridis",
        vmin=0.0, vmax=top, rasterized=True,
    )  # fmt: skip
    ax.set_ylim(len(rows) + 0.5, 0.5)
    # More names than fit would be over each other: every second then, or every third.
    apart = -(-len(rows) // _NAMES)
    shown = [short(name) for name in ranks][::apart]
    ax.set_yticks(range(1, len(rows) + 1, apart), shown, fontsize=7)
    return mesh


def _distance(base: Outcome, arm: Outcome, points: int) -> Array:
    """(points,): ||stable ranks of the arm - those of the baseline||_2 over the layers."""
    held, other = base.stable_ranks(), arm.stable_ranks()
    gaps = [_held(other[name], points) - _held(held[name], points) for name in held]
    distance: Array = np.linalg.norm(np.stack(gaps), axis=0)
    return distance


def _step_ticks(ax: Axes, steps: NDArray[np.int64], *, labelled: bool) -> None:
    """Powers of ten where the points reach them."""
    powers = [10**k for k in range(int(np.log10(max(1, int(steps[-1])))) + 1)]
    ax.set_xticks([float(np.searchsorted(steps, power)) for power in powers],
                  [f"{power:g}" for power in powers], fontsize=7)  # fmt: skip
    ax.tick_params(labelbottom=labelled)
    if labelled:
        ax.set_xlabel("optimizer step (even in measured points)")


def _held(values: Array, points: int) -> Array:
    """(points,): the last value held where the runs ended before."""
    return np.pad(values, (0, points - len(values)), mode="edge")


def _deviation(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
