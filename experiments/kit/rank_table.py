"""Accuracy of every group of layers at every rank, as a coloured table (Figures 29 to 32)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from spectral_monitor.figures.panels import grid
from spectral_monitor.step.frame import Array

from experiments.kit.arms import Outcome
from experiments.kit.differences import best_accuracy, gap_at_best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Between which points of difference the deepest colour is.
SMALLEST, LARGEST = 0.5, 5.0

Points = Callable[[Outcome], float]


def rank_table_figure(panels: Mapping[str, Mapping[str, Outcome]]) -> Figure:
    """A row of tables for each panel: best test accuracy, and the generalisation gap there.

    Args:
        panels: title -> arms by label; an empty title is left out. A table has a row for each
            series and a column for each rank; the colour is the difference to the panel's
            baseline, blue where better (more accuracy, less gap) and red where worse.
    """
    figure = grid(len(panels), 2, width=5.6, height=4.2)
    rows = [figure.axes[i : i + 2] for i in range(0, 2 * len(panels), 2)]
    for (title, outcomes), (left, right) in zip(panels.items(), rows, strict=True):
        _table(left, outcomes, best_accuracy, 1.0, title, "best test accuracy, %")
        _table(right, outcomes, gap_at_best, -1.0, title, "gap there, points")
    return figure


def _table(
    ax: Axes,
    outcomes: Mapping[str, Outcome],
    points: Points,
    better: float,
    panel: str,
    what: str,
) -> None:
    base = next((points(o) for o in outcomes.values() if o.arm.is_baseline), None)
    arms = [o for o in outcomes.values() if o.arm.rank is not None]
    series = list(dict.fromkeys(o.arm.series for o in arms))
    ranks = sorted({o.arm.rank or 0.0 for o in arms})
    values: Array = np.full((len(series), len(ranks)), np.nan)
    for outcome in arms:
        values[series.index(outcome.arm.series), ranks.index(outcome.arm.rank or 0.0)] = points(
            outcome
        )
    difference = better * (values - (np.nan if base is None else base))
    # One layer that ends learning altogether is not to take the colour from all the others.
    reach = min(LARGEST, max(SMALLEST, float(np.nanmax(np.abs(difference), initial=0.0))))
    ax.imshow(difference, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        dark = abs(difference[i, j]) > 0.6 * reach
        if np.isfinite(value):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "black")  # fmt: skip
    ax.set_xticks(range(len(ranks)), [f"{100 * rank:g} %" for rank in ranks])
    ax.set_yticks(range(len(series)), [name.replace("_", " ") for name in series])
    ax.set_xlabel("rank, share of the full one")
    title = f"{panel}: {what}" if panel else what
    ax.set_title(title if base is None else f"{title} (baseline {base:.2f})", fontsize=9)
