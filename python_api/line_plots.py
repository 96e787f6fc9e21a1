"""Lines over time: metrics within their bounds, scores beside chance, a tracker's work.

As in `python_api.plots`, every panel takes ``ax=None``, draws on it and returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from python_api.frame import Array, pair_name
from python_api.plots import grid, short, time_axis
from python_api.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "agreement_scores",
    "alignment_scores",
    "bounds_over_time",
    "certainty",
    "comparisons",
    "has_bounds",
    "metric_over_time",
    "overlaps",
    "work_per_step",
]

Indices = np.ndarray[Any, np.dtype[np.int64]]
_TOP = 10
_POINTS = 300
_LABELS = {
    "effective_rank": "effective rank, entropy of σ / Σσ (nats)",
    "effective_rank_exp": "exponential of the effective rank",
    "stable_rank": "stable rank  ‖A‖²_F / σ₁²",
    "spectral_norm": "σ₁",
    "nuclear_norm": "nuclear norm  Σσ",
    "frobenius_norm": "Frobenius norm",
}
# What a tracker can do, from the least work to the most; other words come after.
_WORK = ("kept", "rotated", "rotated twice", "solved", "not finite")


def metric_over_time(run: Run, metric: str = "effective_rank", ax: Axes | None = None) -> Axes:
    """A metric of every weight, each line in the band of its bounds.

    The title tells the largest bound, as a share of the value, where no band can be seen.

    Raises:
        ValueError: this metric was not recorded.
    """
    if metric not in run.metrics:
        known = ", ".join(name for name in _LABELS if name in run.metrics)
        raise ValueError(f"{run.path}: no metric {metric!r}; there are {known}")
    ax = _axes(ax)
    names = [name for name in run.weights if name in run.metrics[metric]]
    shares = []
    for i, name in enumerate(names):
        values = run.metrics[metric][name]
        ax.plot(run.steps, values, color=_colour(i), linewidth=1, label=short(name))
        bounds = run.bound(metric, name)
        if bounds is not None:
            ax.fill_between(
                run.steps, values - bounds, values + bounds,
                color=_colour(i), alpha=0.25, linewidth=0,
            )  # fmt: skip
            shares.append(_largest(bounds, np.abs(values)))
    _frame_values(ax, [run.metrics[metric][name] for name in names])
    told = f", bounds ≤ {100 * max(shares):.2g} %" if shares else ""
    ax.set_ylabel(_LABELS.get(metric, metric))
    ax.set_title(f"{metric.replace('_', ' ').capitalize()}{told}")
    _legend(ax, len(names))
    time_axis(ax, run)
    return ax


def bounds_over_time(run: Run, ax: Axes | None = None) -> Axes:
    """The largest bound of a singular value of each weight, as a share of sigma_1, log scale.

    A tracker's bounds grow while its vectors hold and fall when it turns them, so that of many
    neighbouring steps the largest is drawn.
    """
    ax = _axes(ax)
    when = run.steps[_middles(len(run.steps))]
    for i, name in enumerate(run.weights):
        top = np.asarray(run.singular_values[name])[:, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.asarray(run.value_bounds(name)).max(axis=1) / top
        largest = [share[group].max() for group in _groups(len(share))]
        ax.plot(when, largest, color=_colour(i), linewidth=0.9, label=short(name))
    ax.set_yscale("log")
    ax.set_ylabel("largest bound of a singular value / σ₁")
    ax.set_title("Bounds of the singular values")
    _legend(ax, len(run.weights))
    time_axis(ax, run)
    return ax


def work_per_step(run: Run, ax: Axes | None = None) -> Axes:
    """How many matrices the tracker kept, rotated or solved anew at each step.

    Raises:
        ValueError: the run was not tracked.
    """
    if not run.work:
        raise ValueError(f"{run.path}: no work of a tracker was recorded")
    ax = _axes(ax)
    words = sorted(run.work, key=lambda word: _WORK.index(word) if word in _WORK else len(_WORK))
    groups = _groups(len(run.steps))
    ax.stackplot(
        run.steps[_middles(len(run.steps))],
        [[run.work[word][group].mean() for group in groups] for word in words],
        labels=[f"{word}: {run.work[word].mean():.3g} a step" for word in words],
        colors=[_colour(i) for i in range(len(words))],
        step="mid",
        alpha=0.85,
    )
    ax.set_ylabel("matrices")
    ax.set_ylim(0, None)
    # The first decomposition has nothing to start from.
    anew = int(sum(run.work[word][1:].sum() for word in words if word.startswith("solved")))
    ax.set_title(f"Work of the tracker, {anew} solved anew after the first step")
    ax.legend(fontsize="small", loc="lower right")
    time_axis(ax, run)
    return ax


def alignment_scores(run: Run, ax: Axes | None = None) -> Axes:
    """Mean of the ten leading alignments of each pair (Eq. 4), dashed what chance would give."""
    lines = {
        pair_name((short(a), short(b))): _score(diagonal)
        for (a, b), diagonal in run.alignment_over_heads().items()
    }
    chance = {
        pair_name((short(a), short(b))): value for (a, b), value in run.alignment_chance().items()
    }
    return _beside_chance(run, lines, chance, "alignment score", ax)


def agreement_scores(run: Run, ax: Axes | None = None) -> Axes:
    """Mean of the ten leading agreements of each matrix, dashed what chance would give."""
    lines = {short(name): _score(values) for name, values in run.agreement.items()}
    chance = {short(name): value for name, value in run.chance.agreement.items()}
    return _beside_chance(run, lines, chance, "agreement score", ax)


def overlaps(run: Run, ax: Axes | None = None) -> Axes:
    """Overlap of updates and gradients with the weights, left side, dashed what chance gives."""
    lines = {short(name): np.asarray(sides)[:, 0] for name, sides in run.overlap.items()}
    chance = {short(name): sides[0] for name, sides in run.chance.overlap.items()}
    return _beside_chance(run, lines, chance, "overlap of ten left directions", ax)


def certainty(run: Run) -> Figure:
    """Effective and stable rank in their bounds, the bounds and, of a tracked run, the work."""
    figure = grid(1, 4 if run.work else 3, width=5.4)
    ranks, stable, bounds, *work = figure.axes
    metric_over_time(run, "effective_rank", ranks)
    metric_over_time(run, "stable_rank", stable)
    bounds_over_time(run, bounds)
    for ax in work:
        work_per_step(run, ax)
    return figure


def comparisons(run: Run) -> Figure:
    """Alignment, agreement and overlap scores over time, each beside chance.

    Raises:
        ValueError: none was recorded.
    """
    panels: list[tuple[bool, Callable[[Run, Axes], Axes]]] = [
        (bool(run.alignment), alignment_scores),
        (bool(run.agreement), agreement_scores),
        (bool(run.overlap), overlaps),
    ]
    wanted = [draw for known, draw in panels if known]
    if not wanted:
        raise ValueError(f"{run.path}: no alignment, agreement or overlap was recorded")
    figure = grid(1, len(wanted), width=7.4)
    for ax, draw in zip(figure.axes, wanted, strict=True):
        draw(run, ax)
    return figure


def has_bounds(run: Run) -> bool:
    """Whether bounds were recorded, so that `certainty` says more than rounding."""
    return bool(run.singular_value_bounds or run.work)


def _axes(ax: Axes | None) -> Axes:
    return grid(1, 1).axes[0] if ax is None else ax


def _colour(i: int) -> str:
    return f"C{i % 10}"


def _beside_chance(
    run: Run, lines: Mapping[str, Array], chance: Mapping[str, float], what: str, ax: Axes | None
) -> Axes:
    ax = _axes(ax)
    for i, (label, values) in enumerate(lines.items()):
        ax.plot(run.steps, values, color=_colour(i), linewidth=1, label=label)
        if label in chance:
            ax.axhline(chance[label], color=_colour(i), linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set_ylim(0, None)
    ax.set_ylabel(what)
    ax.set_title(f"{what.capitalize()}, dashed: by chance")
    _legend(ax, len(lines))
    time_axis(ax, run)
    return ax


def _legend(ax: Axes, count: int) -> None:
    if count <= 20:
        ax.legend(fontsize=7, loc="best", ncols=1 if count <= 10 else 2)


def _frame_values(ax: Axes, lines: list[Array]) -> None:
    """Limits that show the values; bounds that are far wider do not squeeze them."""
    known = np.concatenate([values[np.isfinite(values)] for values in lines] or [np.zeros(0)])
    if len(known):
        low, high = float(known.min()), float(known.max())
        margin = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - margin, high + margin)


def _largest(bounds: Array, values: Array) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = bounds / values
    return float(np.max(shares[np.isfinite(shares)], initial=0.0))


def _score(diagonal: Array) -> Array:
    values: Array = np.asarray(diagonal)[:, :_TOP].mean(axis=1)
    return values


def _middles(count: int) -> Indices:
    """The index in the middle of each group of `_groups`."""
    return np.array([(group[0] + group[-1]) // 2 for group in _groups(count)], dtype=np.int64)


def _groups(count: int) -> list[Indices]:
    """At most 300 groups of neighbouring steps: as many as a panel can show."""
    parts = np.array_split(np.arange(count), max(1, min(_POINTS, count)))
    return [part for part in parts if len(part)]
