"""Figures of several panels about one run, or about several on the same scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from spectral_monitor.figures.panels import Axes, Figure, figure_of, grid, say
from spectral_monitor.figures.plots import (
    alignment_of,
    plot_agreement,
    plot_alignment,
    plot_effective_rank,
    plot_errors,
    plot_identifiable,
    plot_singular_values,
    split_scalars,
)
from spectral_monitor.run.reader import Run


def plot_clusters(run: Run, matrix: str | None = None) -> Figure:
    """One matrix: agreement of single vectors, of clusters, and which vectors are identifiable.

    Args:
        run: the recorded run.
        matrix: its name; as for `plot_singular_values` by default.

    Raises:
        ValueError: the run has no agreement of this matrix.

    Example:
        >>> figure = sk.plot_clusters(sk.load_run("runs/first"), "0.weight")
        >>> figure.savefig("clusters.png")
    """
    figure = grid(1, 3, width=4.4, height=4.0)
    single, whole, flags = figure.axes
    plot_agreement(run, matrix, single)
    plot_agreement(run, matrix, whole, clusters=True)
    plot_identifiable(run, matrix, flags)
    return figure


def plot_run(
    run: Run,
    *,
    matrix: str | None = None,
    pair: tuple[str, str] | None = None,
    title: str = "",
    columns: int = 4,
) -> Figure:
    """Four panels: errors, singular values, effective ranks, alignment; in 1, 2 or 4 columns.

    Args:
        run: the recorded run.
        matrix: whose singular values are shown, as for `plot_singular_values`.
        pair: whose alignment is shown, as for `plot_alignment`.
        title: heading of the figure.
        columns: 1, 2 or 4.

    Example:
        >>> figure = sk.plot_run(sk.load_run("runs/first"), title="first")
        >>> figure.savefig("first.png")
    """
    width = 5.25 if columns == 4 else 6.5
    figure = grid(4 // columns, columns, width=width, height=4.6)
    _row(run, list(figure.axes), matrix, pair, {})
    if title:
        figure.suptitle(title)
    return figure


def plot_agreements(run: Run) -> Figure:
    """Agreement with the reference of the first twelve matrices, one panel each.

    Args:
        run: the recorded run.

    Raises:
        ValueError: the run has no agreement.

    Example:
        >>> figure = sk.plot_agreements(sk.load_run("runs/first"))
        >>> figure.savefig("agreements.png")
    """
    names = list(run.agreement)[:12]
    if not names:
        raise ValueError(f"{run.path}: no agreement was recorded")
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure = grid(lines, columns, width=4.4, height=3.4)
    for name, ax in zip(names, figure.axes, strict=False):
        plot_agreement(run, name, ax)
    for ax in figure.axes[len(names) :]:
        ax.set_axis_off()
    return figure


def plot_runs(
    runs: Mapping[str, Run], *, matrix: str | None = None, pair: tuple[str, str] | None = None
) -> Figure:
    """The four panels of `plot_run` for several runs, one row each, on the same scales.

    Args:
        runs: label -> recorded run.
        matrix, pair: as for `plot_run`.

    Raises:
        ValueError: no run was given.

    Example:
        >>> runs = {name: sk.load_run(f"runs/{name}") for name in ("first", "second")}
        >>> sk.plot_runs(runs).savefig("both.png")
    """
    if not runs:
        raise ValueError("plot_runs: expected at least one run")
    figure = figure_of(21, 4.8 * len(runs))
    parts = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
    limits = {"effective_rank": 1.0, "alignment": _common_limit(runs.values(), pair)}
    rows = []
    for (label, run), part in zip(runs.items(), parts, strict=True):
        part.suptitle(label, fontweight="bold", x=0.01, ha="left")
        axes = list(part.subplots(1, 4))
        _row(run, axes, matrix, pair, limits)
        rows.append(axes)
    top = max(axes[1].get_ylim()[1] for axes in rows)
    for axes in rows:
        axes[1].set_ylim(0, top)
    return figure


def _row(
    run: Run,
    axes: Sequence[Axes],
    matrix: str | None,
    pair: tuple[str, str] | None,
    limits: Mapping[str, float | None],
) -> None:
    if split_scalars(run, "error") or split_scalars(run, "loss"):
        plot_errors(run, axes[0])
    else:
        say(axes[0], "no errors recorded")
    plot_singular_values(run, matrix, axes[1])
    plot_effective_rank(run, axes[2], limit=limits.get("effective_rank"))
    if run.alignment:
        plot_alignment(run, pair, axes[3], limit=limits.get("alignment"))
    else:
        say(axes[3], "no alignment recorded")


def _common_limit(runs: Any, pair: tuple[str, str] | None) -> float | None:
    tops = [np.nanmax(alignment_of(run, pair)[1], initial=0.0) for run in runs if run.alignment]
    return float(max(tops)) if tops else None
