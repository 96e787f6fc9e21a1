"""Pictures of weight decay and decomposed layers, after Figure 24 of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from spectral_monitor.figures.panels import grid

from experiments.decomposed_mnist.decay import BASELINE, LAYERS, TENTHS, baseline_at, decomposed_at
from experiments.kit.arms import Outcome
from experiments.kit.figures import Figures, accuracy_figure, stable_rank_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Differences in points that have a label; up to the first they are drawn in proportion, beyond in
# log, so that a gain of one and a loss of fifty are both seen.
POINTS = (2.0, 5.0, 10.0, 20.0, 50.0)


def decay_figures(outcomes: Mapping[str, Outcome]) -> Figures:
    """Best accuracy against rank, a line for each decay; for each decay accuracies and stable ranks
    over the steps."""
    figures = {"decay": decay_figure(outcomes)}
    for decay in BASELINE:
        members = {
            label: outcome
            for label, outcome in outcomes.items()
            if outcome.arm.overrides["weight_decay"] == decay
        }
        base = members.get(baseline_at(decay).label)
        if base is None or len(members) < 2:
            continue
        figures[f"accuracy-decay-{decay:g}"] = accuracy_figure(members)
        labels = [decomposed_at(decay, "all", rank).label for rank in (1.0, 0.4)]
        others = [members[label] for label in labels if label in members]
        figures[f"stable-rank-decay-{decay:g}"] = stable_rank_figure(base, others)
    return figures


def decay_figure(outcomes: Mapping[str, Outcome]) -> Figure:
    """Best test accuracy against the share of ranks, a column for each group of layers (Figure 24).

    A colour for each decay; its baseline is the dashed line. Below, how far the decomposed networks
    are above the baseline of the same decay. Means over seeds.
    """
    groups = [name for name in LAYERS if any(o.arm.series == name for o in outcomes.values())]
    figure = grid(2, max(1, len(groups)), width=5.2, height=3.8)
    panels = np.array(figure.axes).reshape(2, -1)
    for (above, below), layers in zip(panels.T, groups, strict=False):
        for number, decay in enumerate(BASELINE):
            _lines(above, below, outcomes, layers, decay, f"C{number}")
        above.set_title(f"decomposed: {layers}")
        above.set_ylabel("best test accuracy, %")
        above.legend(fontsize="small", title="weight decay")
        below.axhline(0.0, color="black", linestyle="--", linewidth=1)
        _in_points(below)
        below.set_ylabel("points above the baseline")
        below.set_xlabel("rank, % of full")
        for ax in (above, below):
            ax.invert_xaxis()
    return figure


def _lines(
    above: Axes,
    below: Axes,
    outcomes: Mapping[str, Outcome],
    layers: str,
    decay: float,
    colour: str,
) -> None:
    arms = [decomposed_at(decay, layers, rank) for rank in TENTHS]
    found = [outcomes[arm.label] for arm in arms if arm.label in outcomes]
    base = outcomes.get(baseline_at(decay).label)
    if not found or base is None:
        return
    ranks = [100 * (outcome.arm.rank or 0.0) for outcome in found]
    values = np.array([_percent(outcome) for outcome in found])
    above.plot(ranks, values, color=colour, marker="o", label=f"{decay:g}")
    above.axhline(_percent(base), color=colour, linestyle="--", linewidth=1)
    below.plot(ranks, values - _percent(base), color=colour, marker="o")


def _in_points(ax: Axes) -> None:
    """A logarithmic axis on both sides of 0, where differences are too large for a plain one."""
    lowest, highest = ax.get_ylim()
    if max(-lowest, highest) <= POINTS[0]:
        return
    ticks = [-point for point in POINTS[::-1]] + [0.0, *POINTS]
    shown = [tick for tick in ticks if lowest <= tick <= highest]
    ax.set_yscale("symlog", linthresh=POINTS[0])
    ax.set_yticks(shown, [f"{tick:g}" for tick in shown], minor=False)
    ax.set_yticks([], minor=True)


def _percent(outcome: Outcome) -> float:
    return 100 * float(outcome.bests("test_accuracy").mean())
