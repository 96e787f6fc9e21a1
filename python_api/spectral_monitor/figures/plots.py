"""Pictures of a recorded run, in the manner of Figure 2 of "Spectral dynamics of weights".

Every plot of one panel takes ``ax=None``, draws on it (or on axes of a new figure) and returns
it: ``ax.figure.savefig(path)`` keeps it. Colours run from dark to light with the index of a
singular value, or with the size of what a heat map shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from spectral_monitor.figures.panels import (
    VISIBLE,
    Axes,
    Figure,
    colours,
    figure_of,
    grid,
    heatmap,
    line,
    lines_by_index,
    panel,
    say,
    short,
    time_axis,
)
from spectral_monitor.run.reader import Run
from spectral_monitor.step.frame import Array, pair_name

__all__ = [
    "chosen_matrix",
    "plot_agreement",
    "plot_agreements",
    "plot_alignment",
    "plot_clusters",
    "plot_effective_rank",
    "plot_errors",
    "plot_identifiable",
    "plot_run",
    "plot_runs",
    "plot_singular_values",
]

_TRAIN, _VALIDATION = "#4c72b0", "#dd5f32"
_SPLITS = (
    (("train", "training"), "training", _TRAIN),
    (("validation", "val", "valid", "test"), "validation", _VALIDATION),
)
_ATTENTION = ("in_proj", "q_proj", "query", "qkv", "w_q", "attn", "attention")


def plot_errors(run: Run, ax: Axes | None = None, *, losses: bool = True) -> Axes:
    """Training and validation error, 1 - accuracy, over time; losses dashed on a log scale.

    Reads the scalars ``{train,validation,val,test}_{error,accuracy,acc,loss}``, also written
    ``train/loss``. Where there are no errors or accuracies the losses stand alone.

    Raises:
        ValueError: none of these scalars was recorded.
    """
    ax = panel(ax)
    error, loss = _split_scalars(run, "error"), _split_scalars(run, "loss")
    if not error and not loss:
        raise ValueError(
            f"{run.path}: no error, accuracy or loss among the scalars "
            f"({', '.join(run.scalars) or 'none'})"
        )
    if error:
        for label, colour, values in error:
            line(ax, run.steps, values, color=colour, label=f"{label} error")
        ax.set_ylim(-0.03, 1.03)
        ax.set_ylabel("error (1 − accuracy)")
    if loss and (losses or not error):
        right = ax.twinx() if error else ax
        for label, colour, values in loss:
            style = {"linestyle": (0, (3, 2)), "alpha": 0.6, "linewidth": 1} if error else {}
            line(right, run.steps, values, color=colour, label=f"{label} loss", **style)
        right.set_yscale("log")
        right.set_ylabel("loss")
    # One legend for both scales, on the axes that are drawn last.
    top = ax.figure.axes[-1] if loss and losses and error else ax
    lines = [line for axes in dict.fromkeys((ax, top)) for line in axes.get_lines()]
    top.legend(lines, [str(line.get_label()) for line in lines], fontsize="small", loc="best")
    time_axis(ax, run)
    ax.set_title("Errors")
    return ax


def plot_singular_values(run: Run, matrix: str | None = None, ax: Axes | None = None) -> Axes:
    """Every singular value of one matrix over time, coloured by its index.

    Where bounds were recorded and are wide enough to be seen, they are a band around each line,
    but for bands that would fill the panel; the title tells the largest bound.

    Args:
        run: the recorded run.
        matrix: its name; the first attention weight, or else the second matrix, by default.
        ax: axes to draw on.
    """
    ax = panel(ax)
    name = chosen_matrix(run, matrix)
    values = np.asarray(run.singular_values[name])
    lines_by_index(ax, run, values, "index i of the singular value")
    top = float(np.nanmax(values, initial=0.0))
    height = 1.05 * top if top > 0 else 1.0
    ax.set_ylim(0, height)
    ax.set_ylabel("singular value")
    remark = ""
    if name in run.singular_value_bounds:
        bounds = np.asarray(run.singular_value_bounds[name])
        largest = float(np.nanmax(bounds, initial=0.0))
        if largest >= VISIBLE * height:
            _value_bands(ax, run, values, bounds, height)
        remark = f", bounds ≤ {largest / top:.1g} σ₁" if top > 0 else ""
    time_axis(ax, run)
    ax.set_title(f"Singular values of {short(name)}{remark}")
    return ax


def _value_bands(ax: Axes, run: Run, values: Array, bounds: Array, height: float) -> None:
    for i, colour in enumerate(colours(values.shape[1])):
        if not np.nanmedian(bounds[:, i]) < height:
            continue
        ax.fill_between(
            run.steps, values[:, i] - bounds[:, i], values[:, i] + bounds[:, i],
            color=colour, alpha=0.15, linewidth=0, zorder=0.5,
        )  # fmt: skip


def plot_effective_rank(
    run: Run, ax: Axes | None = None, *, form: str = "exponential", limit: float | None = None
) -> Axes:
    """Normalised effective rank of every matrix over time.

    Args:
        run: the recorded run.
        ax: axes to draw on.
        form: "exponential", exp(H) / r, which is 1 for a flat spectrum of any size (what the
            authors' code plots); "entropy", H / r (Eq. 2).
        limit: value of the lightest colour; the largest one shown by default.
    """
    ax = panel(ax)
    if form not in ("exponential", "entropy"):
        raise ValueError(f"form: expected 'exponential' or 'entropy', got {form!r}")
    rows = [
        run.normalized(name, run.metrics["effective_rank_exp"][name])
        if form == "exponential"
        else run.metrics["normalized_effective_rank"][name]
        for name in run.matrices
    ]
    label = "exp(H) / r" if form == "exponential" else "H / r"
    heatmap(ax, run, np.array(rows), f"normalised effective rank  {label}", limit)
    ax.set_yticks(range(1, len(rows) + 1), [short(name) for name in run.matrices])
    ax.tick_params(axis="y", labelsize="small" if len(rows) <= 20 else 5)
    ax.set_title("Effective rank of every matrix")
    return ax


def plot_alignment(
    run: Run,
    pair: tuple[str, str] | None = None,
    ax: Axes | None = None,
    *,
    limit: float | None = None,
) -> Axes:
    """Diagonal of the alignment |U^T V'| of two layers (Eq. 3) over time.

    Args:
        run: the recorded run.
        pair: the two names; heads may be left out (``x[q]``) for their mean. By default the
            pair that ends in the matrix `plot_singular_values` shows, or else the first.
        ax: axes to draw on.
        limit: value of the lightest colour; the largest one shown by default.

    Raises:
        ValueError: the run has no alignment, or not this pair.
    """
    ax = panel(ax)
    name, diagonal = _alignment(run, pair)
    heatmap(ax, run, np.asarray(diagonal).T, "alignment  |⟨uᵢ, v′ᵢ⟩|", limit)
    ax.set_ylabel("index i of the diagonal")
    ax.set_title(f"Alignment {short(name[0])} → {short(name[1])}")
    return ax


def plot_agreement(
    run: Run,
    matrix: str | None = None,
    ax: Axes | None = None,
    *,
    limit: float | None = 1.0,
    clusters: bool = False,
) -> Axes:
    """Agreement of a matrix's singular vectors with its reference (Eq. 5) over time.

    Args:
        run: the recorded run.
        matrix: its name; as for `plot_singular_values` by default.
        ax: axes to draw on.
        limit: value of the lightest colour; ``None``: the largest one shown.
        clusters: show the agreement of the subspaces of clusters, see
            `spectral_kernels.subspace_agreement`.

    Raises:
        ValueError: the run has no agreement of this matrix.
    """
    ax = panel(ax)
    name = chosen_matrix(run, matrix)
    recorded = run.subspace_agreement if clusters else run.agreement
    if name not in recorded:
        raise ValueError(f"{run.path}: no agreement of {name!r} was recorded")
    data = np.asarray(recorded[name]).T
    what = "‖U_CᵀU⁰_C‖‖V_CᵀV⁰_C‖ / |C|" if clusters else "|⟨uᵢ, u⁰ᵢ⟩⟨vᵢ, v⁰ᵢ⟩|"
    chance = run.chance.agreement.get(name)
    heatmap(ax, run, data, f"agreement  {what}", limit)
    ax.set_ylabel("index i of the singular vectors")
    by_chance = f" (by chance {chance:.2g})" if chance is not None and not clusters else ""
    remark = " in clusters" if clusters else by_chance
    ax.set_title(f"Agreement of {short(name)}{remark}", fontsize="medium")
    return ax


def plot_identifiable(run: Run, matrix: str | None = None, ax: Axes | None = None) -> Axes:
    """Which singular vectors of a matrix could be told apart, over time.

    Raises:
        ValueError: this was not recorded for the matrix.
    """
    ax = panel(ax)
    name = chosen_matrix(run, matrix)
    if name not in run.identifiable:
        raise ValueError(f"{run.path}: not recorded which vectors of {name!r} are identifiable")
    data = np.asarray(run.identifiable[name]).T
    heatmap(ax, run, data, "1: identifiable, 0: in a cluster", 1.0)
    ax.set_ylabel("index i of the singular vectors")
    ax.set_title(
        f"Identifiable vectors of {short(name)}: {np.nanmean(data):.0%}", fontsize="medium"
    )
    return ax


def plot_clusters(run: Run, matrix: str | None = None) -> Figure:
    """One matrix: agreement of single vectors, of clusters, and which vectors are identifiable.

    Raises:
        ValueError: the run has no agreement of this matrix.
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
    """Four panels: errors, singular values, effective ranks, alignment; in 1, 2 or 4 columns."""
    width = 5.25 if columns == 4 else 6.5
    figure = grid(4 // columns, columns, width=width, height=4.6)
    _row(run, list(figure.axes), matrix, pair, {})
    if title:
        figure.suptitle(title)
    return figure


def plot_agreements(run: Run) -> Figure:
    """Agreement with the reference of the first twelve matrices, one panel each.

    Raises:
        ValueError: the run has no agreement.
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

    Raises:
        ValueError: no run was given.
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
    if _split_scalars(run, "error") or _split_scalars(run, "loss"):
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
    tops = [np.nanmax(_alignment(run, pair)[1], initial=0.0) for run in runs if run.alignment]
    return float(max(tops)) if tops else None


def _split_scalars(run: Run, what: str) -> list[tuple[str, str, Array]]:
    """(label, colour, values) of the training and the validation errors, or losses."""
    lines = []
    for splits, label, colour in _SPLITS:
        for split in splits:
            values = _scalar(run, split, what)
            if values is not None:
                lines.append((label, colour, values))
                break
    return lines


def _scalar(run: Run, split: str, what: str) -> Array | None:
    for separator in ("_", "/"):
        values = run.scalars.get(f"{split}{separator}{what}")
        if values is not None:
            return values
        if what == "error":
            for accuracy in ("accuracy", "acc"):
                values = run.scalars.get(f"{split}{separator}{accuracy}")
                if values is not None:
                    return np.asarray(1.0 - values)
    return None


def chosen_matrix(run: Run, matrix: str | None = None) -> str:
    """The matrix that panels show where none is named: the first attention weight, or else the
    second matrix.

    Raises:
        ValueError: there is no such matrix.
    """
    if matrix is not None:
        if matrix not in run.singular_values:
            raise ValueError(
                f"{run.path}: no matrix {matrix!r}; there are {', '.join(run.matrices)}"
            )
        return matrix
    names = run.matrices
    if not names:
        raise ValueError(f"{run.path}: no singular values were recorded")
    attention = [name for name in names if any(word in name.lower() for word in _ATTENTION)]
    return attention[0] if attention else names[min(1, len(names) - 1)]


def _alignment(run: Run, pair: tuple[str, str] | None) -> tuple[tuple[str, str], Array]:
    if not run.alignment:
        raise ValueError(f"{run.path}: no alignment was recorded")
    if pair is None:
        shown = chosen_matrix(run, None)
        ending = [key for key in run.alignment if key[1] == shown]
        # A table of positions has very few rows; the embedding proper says more.
        ending.sort(key=lambda key: -run.alignment[key].shape[1])
        pair = (ending or list(run.alignment))[0]
    if tuple(pair) not in run.alignment:
        names = ", ".join(pair_name(key) for key in run.alignment)
        raise ValueError(f"{run.path}: no alignment {pair_name(pair)}; there are {names}")
    return (pair[0], pair[1]), run.alignment[pair[0], pair[1]]
