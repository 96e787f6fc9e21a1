"""Lines over time: metrics within their bounds, scores beside chance, a tracker's work.

As in `spectral_monitor.figures.plots`, every panel takes ``ax=None``, draws on it and returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from spectral_monitor.figures.panels import (
    VISIBLE,
    Axes,
    Figure,
    grid,
    panel,
    short,
    time_axis,
    whole_numbers,
)
from spectral_monitor.run.reader import Run
from spectral_monitor.step.frame import Array, alignment_score, pair_name

Indices = np.ndarray[Any, np.dtype[np.int64]]
_POINTS = 300
# Bands too narrow to be seen are drawn so many times as wide, and the title says so.
_WIDENED = (1, 10, 100, 1000)
# In inches: as much as a page shows without making the words smaller.
_PAGE = 13.0
_LABELS = {
    "effective_rank": "effective rank, entropy of σ / Σσ (nats)",
    "effective_rank_exp": "exponential of the effective rank",
    "stable_rank": "stable rank  ‖A‖²_F / σ₁²",
    "spectral_norm": "σ₁",
    "nuclear_norm": "nuclear norm  Σσ",
    "frobenius_norm": "Frobenius norm",
}
# What a tracker can do, from the least work to the most; other words come after.
_WORK = {
    "kept": "#c6dbef",
    "rotated": "#6baed6",
    "rotated twice": "#2171b5",
    "rotated three times": "#08306b",
    "one iteration": "#a1d99b",
    "two iterations": "#41ab5d",
    "three iterations": "#00682a",
    "solved": "#d62728",
    "not finite": "#737373",
}


def plot_metric(run: Run, metric: str = "effective_rank", ax: Axes | None = None) -> Axes:
    """A metric of every weight, each line in the band of its bounds.

    The title tells the largest bound, as a share of the value, and how many times as wide as the
    bounds the bands are drawn, where they are too narrow to be seen.

    Args:
        run: the recorded run.
        metric: a key of ``run.metrics``, such as "effective_rank" (nats) or "stable_rank".
        ax: axes to draw on.

    Raises:
        ValueError: this metric was not recorded.

    Example:
        >>> ax = sk.plot_metric(sk.load_run("runs/first"), "stable_rank")
        >>> ax.get_xlabel()
        'training step'
    """
    if metric not in run.metrics:
        others = ", ".join(name for name in _LABELS if name in run.metrics)
        raise ValueError(f"{run.path}: no metric {metric!r}; there are {others}")
    ax = panel(ax)
    names = [name for name in run.weights if name in run.metrics[metric]]
    _frame_values(ax, [run.metrics[metric][name] for name in names])
    recorded = {name: run.bound(metric, name) for name in names}
    bounds_of = {name: bounds for name, bounds in recorded.items() if bounds is not None}
    times = _widening(ax, list(bounds_of.values()))
    shares = []
    for i, name in enumerate(names):
        values = run.metrics[metric][name]
        ax.plot(run.steps, values, color=_colour(i), linewidth=1, label=short(name))
        if name in bounds_of:
            half = times * bounds_of[name]
            ax.fill_between(
                run.steps, values - half, values + half,
                color=_colour(i), alpha=0.25, linewidth=0,
            )  # fmt: skip
            shares.append(_largest(bounds_of[name], np.abs(values)))
    remark = f", bounds ≤ {100 * max(shares):.2g} %" if shares else ""
    remark += f", drawn {times} times as wide" if times > 1 else ""
    ax.set_ylabel(_LABELS.get(metric, metric))
    ax.set_title(f"{metric.replace('_', ' ').capitalize()}{remark}", fontsize="medium")
    _legend(ax, len(names))
    time_axis(ax, run)
    return ax


def plot_bounds(run: Run, ax: Axes | None = None) -> Axes:
    """The largest bound of a singular value of each weight, as a share of sigma_1, log scale.

    A tracker's bounds grow while its vectors hold and fall when it turns them, so that of many
    neighbouring steps the largest is drawn. After a new solution they are rounding alone, far
    below the panel.

    Args:
        run: the recorded run.
        ax: axes to draw on.

    Example:
        >>> ax = sk.plot_bounds(sk.load_run("runs/first"))
        >>> ax.get_yscale()
        'log'
    """
    ax = panel(ax)
    when = run.steps[_middles(len(run.steps))]
    for i, name in enumerate(run.weights):
        top = np.asarray(run.singular_values[name])[:, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.asarray(run.value_bounds(name)).max(axis=1) / top
        largest = [share[group].max() for group in _groups(len(share))]
        ax.plot(when, largest, color=_colour(i), linewidth=0.9, label=short(name))
    ax.set_yscale("log")
    _frame_levels(ax)
    ax.set_ylabel("largest bound of a singular value / σ₁")
    ax.set_title("Bounds of the singular values", fontsize="medium")
    _legend(ax, len(run.weights))
    time_axis(ax, run)
    return ax


def plot_work(run: Run, ax: Axes | None = None) -> Axes:
    """How many matrices the tracker kept, rotated or solved anew at each step.

    Args:
        run: the recorded run, of a monitor with method "tracked".
        ax: axes to draw on.

    Raises:
        ValueError: the run was not tracked.

    Example:
        >>> ax = sk.plot_work(sk.load_run("runs/first"))
        >>> ax.get_xlabel()
        'training step'
    """
    if not run.work:
        raise ValueError(f"{run.path}: no work of a tracker was recorded")
    ax = panel(ax)
    order = list(_WORK)
    words = sorted(run.work, key=lambda word: order.index(word) if word in _WORK else len(order))
    groups = _groups(len(run.steps))
    ax.stackplot(
        run.steps[_middles(len(run.steps))],
        [[run.work[word][group].mean() for group in groups] for word in words],
        labels=[f"{word}: {run.work[word].mean():.3g} a step" for word in words],
        colors=[_WORK.get(word, _colour(i)) for i, word in enumerate(words)],
        step="mid",
    )
    ax.set_ylabel("matrices")
    ax.set_ylim(0, None)
    whole_numbers(ax)
    # The first decomposition has nothing to start from.
    anew = int(sum(run.work[word][1:].sum() for word in words if word.startswith("solved")))
    ax.set_title(f"Work of the tracker, {anew} solved anew after the first step", fontsize="medium")
    _legend(ax, len(words))
    time_axis(ax, run)
    return ax


def plot_alignment_scores(run: Run, ax: Axes | None = None) -> Axes:
    """Mean of the ten leading alignments of each pair (Eq. 4), dashed what chance would give.

    Args:
        run: the recorded run.
        ax: axes to draw on.

    Example:
        >>> ax = sk.plot_alignment_scores(sk.load_run("runs/first"))
        >>> ax.get_xlabel()
        'training step'
    """
    lines = {
        pair_name((short(a), short(b))): scores(diagonal)
        for (a, b), diagonal in run.alignment.items()
    }
    chance = {
        pair_name((short(a), short(b))): value for (a, b), value in run.chance.alignment.items()
    }
    return _beside_chance(run, lines, chance, "alignment score", ax)


def plot_agreement_scores(run: Run, ax: Axes | None = None) -> Axes:
    """Mean of the ten leading agreements of each matrix, dashed what chance would give.

    Args:
        run: the recorded run.
        ax: axes to draw on.

    Example:
        >>> ax = sk.plot_agreement_scores(sk.load_run("runs/first"))
        >>> ax.get_xlabel()
        'training step'
    """
    lines = {short(name): scores(values) for name, values in run.agreement.items()}
    chance = {short(name): value for name, value in run.chance.agreement.items()}
    return _beside_chance(run, lines, chance, "agreement score", ax)


def plot_overlaps(run: Run, ax: Axes | None = None) -> Axes:
    """Overlap of updates and gradients with the weights, left side, dashed what chance gives.

    Args:
        run: the recorded run, of a monitor with ``watch=("weights", "updates")`` or "gradients".
        ax: axes to draw on.

    Example:
        >>> ax = sk.plot_overlaps(sk.load_run("runs/first"))  # of a monitor with watch="updates"
        >>> ax.get_xlabel()
        'training step'
    """
    lines = {short(name): np.asarray(sides)[:, 0] for name, sides in run.overlap.items()}
    chance = {short(name): sides[0] for name, sides in run.chance.overlap.items()}
    return _beside_chance(run, lines, chance, "overlap of ten left directions", ax)


def plot_certainty(run: Run) -> Figure:
    """Effective and stable rank in their bounds, the bounds and, of a tracked run, the work.

    Args:
        run: the recorded run.

    Example:
        >>> figure = sk.plot_certainty(sk.load_run("runs/first"))
        >>> figure.savefig("certainty.png")
    """
    figure = grid(2, 2, width=_PAGE / 2, height=5.0) if run.work else grid(1, 3, width=_PAGE / 3)
    ranks, stable, bounds, *work = figure.axes
    plot_metric(run, "effective_rank", ranks)
    plot_metric(run, "stable_rank", stable)
    plot_bounds(run, bounds)
    for ax in work:
        plot_work(run, ax)
    return figure


def plot_scores(run: Run) -> Figure:
    """Alignment, agreement and overlap scores over time, each beside chance.

    Args:
        run: the recorded run.

    Raises:
        ValueError: none was recorded.

    Example:
        >>> figure = sk.plot_scores(sk.load_run("runs/first"))
        >>> len(figure.axes)
        3
    """
    panels: list[tuple[bool, Callable[[Run, Axes], Axes]]] = [
        (bool(run.alignment), plot_alignment_scores),
        (bool(run.agreement), plot_agreement_scores),
        (bool(run.overlap), plot_overlaps),
    ]
    wanted = [draw for is_recorded, draw in panels if is_recorded]
    if not wanted:
        raise ValueError(f"{run.path}: no alignment, agreement or overlap was recorded")
    figure = grid(1, len(wanted), width=min(7.4, _PAGE / len(wanted)), height=5.0)
    for ax, draw in zip(figure.axes, wanted, strict=True):
        draw(run, ax)
    return figure


def has_bounds(run: Run) -> bool:
    """Whether bounds were recorded, so that `plot_certainty` says more than rounding."""
    return bool(run.singular_value_bounds or run.work)


def _colour(i: int) -> str:
    return f"C{i % 10}"


def _beside_chance(
    run: Run, lines: Mapping[str, Array], chance: Mapping[str, float], what: str, ax: Axes | None
) -> Axes:
    ax = panel(ax)
    for i, (label, values) in enumerate(lines.items()):
        ax.plot(run.steps, values, color=_colour(i), linewidth=1, label=label)
        if label in chance:
            ax.axhline(chance[label], color=_colour(i), linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set_ylim(0, None)
    ax.set_ylabel(what)
    ax.set_title(f"{what.capitalize()}, dashed: by chance", fontsize="medium")
    _legend(ax, len(lines))
    time_axis(ax, run)
    return ax


def _legend(ax: Axes, count: int) -> None:
    # Under the axes: over them it would hide lines, wherever it stands.
    if count <= 20:
        ax.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2,
                  frameon=False)  # fmt: skip


def _frame_values(ax: Axes, lines: list[Array]) -> None:
    """Limits that show the values; bounds that are far wider do not squeeze them."""
    finite = np.concatenate([values[np.isfinite(values)] for values in lines] or [np.zeros(0)])
    if len(finite):
        low, high = float(finite.min()), float(finite.max())
        margin = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - margin, high + margin)


def _frame_levels(ax: Axes) -> None:
    """Limits that show where the lines mostly are, not how far they drop for a moment."""
    values = [np.asarray(line.get_ydata(), dtype=np.float64) for line in ax.get_lines()]
    positive = [y[np.isfinite(y) & (y > 0)] for y in values]
    levels = [(float(np.median(y)), float(y.max())) for y in positive if len(y)]
    if levels:
        ax.set_ylim(min(low for low, _ in levels) / 10, 2 * max(high for _, high in levels))


def _widening(ax: Axes, bounds: list[Array]) -> int:
    """How many times as wide bands are to be drawn in these axes; 1 if nothing helps."""
    low, high = ax.get_ylim()
    widest = max((float(np.nanmax(half, initial=0.0)) for half in bounds), default=0.0)
    if widest >= VISIBLE * (high - low):
        return 1
    return next((n for n in _WIDENED if n * widest >= 0.01 * (high - low)), 1)


def _largest(bounds: Array, values: Array) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = bounds / values
    return float(np.max(shares[np.isfinite(shares)], initial=0.0))


def scores(diagonals: Array) -> Array:
    """The score of the diagonal (k,) of every frame: (frames, k) gives (frames,)."""
    return np.array([alignment_score(diagonal) for diagonal in np.asarray(diagonals)])


def _middles(count: int) -> Indices:
    """The index in the middle of each group of `_groups`."""
    return np.array([(group[0] + group[-1]) // 2 for group in _groups(count)], dtype=np.int64)


def _groups(count: int) -> list[Indices]:
    """At most 300 groups of neighbouring steps: as many as a panel can show."""
    parts = np.array_split(np.arange(count), max(1, min(_POINTS, count)))
    return [part for part in parts if len(part)]
