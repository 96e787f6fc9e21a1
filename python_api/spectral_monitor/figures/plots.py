"""Pictures of a recorded run, in the manner of Figure 2 of "Spectral dynamics of weights".

Every plot of one panel takes ``ax=None``, draws on it (or on axes of a new figure) and returns
it: ``ax.figure.savefig(path)`` keeps it. Colours run from dark to light with the index of a
singular value, or with the size of what a heat map shows. pyplot is not used, so no figure
stays open behind the caller's back.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from spectral_monitor.run.reader import Run
from spectral_monitor.step.frame import Array, pair_name

__all__ = [
    "chosen_matrix",
    "grid",
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
    "to_png",
]

_COLOURS = "viridis"
# A band narrower than this share of the axis looks like the line.
VISIBLE = 0.004
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
    ax = _axes(ax)
    found, loss = _split_scalars(run, "error"), _split_scalars(run, "loss")
    if not found and not loss:
        raise ValueError(
            f"{run.path}: no error, accuracy or loss among the scalars "
            f"({', '.join(run.scalars) or 'none'})"
        )
    if found:
        for label, colour, values in found:
            _line(ax, run.steps, values, color=colour, label=f"{label} error")
        ax.set_ylim(-0.03, 1.03)
        ax.set_ylabel("error (1 − accuracy)")
    if loss and (losses or not found):
        right = ax.twinx() if found else ax
        for label, colour, values in loss:
            style = {"linestyle": (0, (3, 2)), "alpha": 0.6, "linewidth": 1} if found else {}
            _line(right, run.steps, values, color=colour, label=f"{label} loss", **style)
        right.set_yscale("log")
        right.set_ylabel("loss")
    # One legend for both scales, on the axes that are drawn last.
    top = ax.figure.axes[-1] if loss and losses and found else ax
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
    ax = _axes(ax)
    name = chosen_matrix(run, matrix)
    values = np.asarray(run.singular_values[name])
    r = values.shape[1]
    steps = np.broadcast_to(run.steps[:, None], values.shape)
    # The leading values are drawn last, over the crowd of small ones.
    lines = LineCollection(
        list(np.stack([steps, values], axis=-1).transpose(1, 0, 2))[::-1],
        array=np.arange(r, 0, -1),
        cmap=_COLOURS,
        linewidths=0.8,
    )
    ax.add_collection(lines)
    top = float(np.nanmax(values, initial=0.0))
    height = 1.05 * top if top > 0 else 1.0
    ax.set_ylim(0, height)
    ax.set_ylabel("singular value")
    told = ""
    if name in run.singular_value_bounds:
        bounds = np.asarray(run.singular_value_bounds[name])
        largest = float(np.nanmax(bounds, initial=0.0))
        if largest >= VISIBLE * height:
            _value_bands(ax, run, values, bounds, height)
        told = f", bounds ≤ {largest / top:.1g} σ₁" if top > 0 else ""
    time_axis(ax, run)
    _colourbar(ax, lines, "index i of the singular value")
    ax.set_title(f"Singular values of {short(name)}{told}")
    return ax


def _value_bands(ax: Axes, run: Run, values: Array, bounds: Array, height: float) -> None:
    r = values.shape[1]
    colours = colormaps[_COLOURS](np.linspace(0, 1, r)) if r > 1 else ["C0"]
    for i in range(r):
        if not np.nanmedian(bounds[:, i]) < height:
            continue
        ax.fill_between(
            run.steps, values[:, i] - bounds[:, i], values[:, i] + bounds[:, i],
            color=colours[i], alpha=0.15, linewidth=0, zorder=0.5,
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
    ax = _axes(ax)
    if form not in ("exponential", "entropy"):
        raise ValueError(f"form: expected 'exponential' or 'entropy', got {form!r}")
    rows = []
    for name in run.matrices:
        if form == "entropy":
            rows.append(run.metrics["normalized_effective_rank"][name])
        else:
            # H / r = normalised, so r is known even where fewer values were computed.
            entropy = run.metrics["effective_rank"][name]
            normalized = run.metrics["normalized_effective_rank"][name]
            with np.errstate(invalid="ignore", divide="ignore"):
                rows.append(run.metrics["effective_rank_exp"][name] * normalized / entropy)
    label = "exp(H) / r" if form == "exponential" else "H / r"
    _heatmap(ax, run, np.array(rows), f"normalised effective rank  {label}", limit)
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
    ax = _axes(ax)
    name, diagonal = _alignment(run, pair)
    _heatmap(ax, run, np.asarray(diagonal).T, "alignment  |⟨uᵢ, v′ᵢ⟩|", limit)
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
    ax = _axes(ax)
    name = chosen_matrix(run, matrix)
    recorded = run.subspace_agreement if clusters else run.agreement
    if name not in recorded:
        raise ValueError(f"{run.path}: no agreement of {name!r} was recorded")
    data = np.asarray(recorded[name]).T
    what = "‖U_CᵀU⁰_C‖‖V_CᵀV⁰_C‖ / |C|" if clusters else "|⟨uᵢ, u⁰ᵢ⟩⟨vᵢ, v⁰ᵢ⟩|"
    chance = run.chance.agreement.get(name)
    _heatmap(ax, run, data, f"agreement  {what}", limit)
    ax.set_ylabel("index i of the singular vectors")
    by_chance = f" (by chance {chance:.2g})" if chance is not None and not clusters else ""
    told = " in clusters" if clusters else by_chance
    ax.set_title(f"Agreement of {short(name)}{told}", fontsize="medium")
    return ax


def plot_identifiable(run: Run, matrix: str | None = None, ax: Axes | None = None) -> Axes:
    """Which singular vectors of a matrix could be told apart, over time.

    Raises:
        ValueError: this was not recorded for the matrix.
    """
    ax = _axes(ax)
    name = chosen_matrix(run, matrix)
    if name not in run.identifiable:
        raise ValueError(f"{run.path}: not recorded which vectors of {name!r} are identifiable")
    data = np.asarray(run.identifiable[name]).T
    _heatmap(ax, run, data, "1: identifiable, 0: in a cluster", 1.0)
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
    figure = Figure(figsize=(4.4 * columns, 3.4 * lines), layout=_spaced())
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for name, ax in zip(names, panels, strict=False):
        plot_agreement(run, name, ax)
    for ax in panels[len(names) :]:
        ax.set_axis_off()
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def plot_runs(
    runs: Mapping[str, Run], *, matrix: str | None = None, pair: tuple[str, str] | None = None
) -> Figure:
    """The four panels of `plot_run` for several runs, one row each, on the same scales.

    Raises:
        ValueError: no run was given.
    """
    if not runs:
        raise ValueError("plot_runs: expected at least one run")
    figure = Figure(figsize=(21, 4.8 * len(runs)), layout=_spaced())
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


def grid(lines: int, columns: int, *, width: float = 6.4, height: float = 4.4) -> Figure:
    """A figure of ``lines`` x ``columns`` empty panels of this size in inches."""
    figure = Figure(figsize=(width * columns, height * lines), layout=_spaced())
    figure.subplots(lines, columns, squeeze=False)
    return figure


def _spaced() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(wspace=0.05, hspace=0.04)


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
        _say(axes[0], "no errors recorded")
    plot_singular_values(run, matrix, axes[1])
    plot_effective_rank(run, axes[2], limit=limits.get("effective_rank"))
    if run.alignment:
        plot_alignment(run, pair, axes[3], limit=limits.get("alignment"))
    else:
        _say(axes[3], "no alignment recorded")


def _say(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, ha="center", va="center", color="gray", transform=ax.transAxes)
    ax.set_axis_off()


def _common_limit(runs: Any, pair: tuple[str, str] | None) -> float | None:
    tops = [np.nanmax(_alignment(run, pair)[1], initial=0.0) for run in runs if run.alignment]
    return float(max(tops)) if tops else None


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    return Figure(figsize=(6.4, 4.4), layout="constrained").subplots()


def _split_scalars(run: Run, what: str) -> list[tuple[str, str, Array]]:
    """(label, colour, values) of the training and the validation errors, or losses."""
    found = []
    for splits, label, colour in _SPLITS:
        for split in splits:
            values = _scalar(run, split, what)
            if values is not None:
                found.append((label, colour, values))
                break
    return found


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


def _line(ax: Axes, steps: Any, values: Array, **style: Any) -> None:
    # Scalars that were not passed at every step leave gaps, which a line would not cross.
    known = np.isfinite(values)
    ax.plot(steps[known], values[known], **style)


def _heatmap(ax: Axes, run: Run, data: Array, label: str, limit: float | None) -> None:
    """Rows over time, the first row on top; what is not a number stays grey."""
    count = data.shape[0]
    top = limit if limit is not None else float(np.nanmax(data, initial=0.0)) or 1.0
    edges = _edges(run.steps)
    ax.set_facecolor("0.8")
    mesh = ax.pcolormesh(
        edges, np.arange(count + 1) + 0.5, np.ma.masked_invalid(data), cmap=_COLOURS,
        vmin=0.0, vmax=top, rasterized=True,
    )  # fmt: skip
    ax.set_ylim(count + 0.5, 0.5)
    whole_numbers(ax)
    time_axis(ax, run)
    ax.set_xlim(edges[0], edges[-1])
    _colourbar(ax, mesh, label)


def _edges(steps: Any) -> Array:
    """Borders between neighbouring steps, for cells of a heat map."""
    if len(steps) == 0:
        return np.array([0.0, 1.0])
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])


def whole_numbers(ax: Axes) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def time_axis(ax: Axes, run: Run) -> None:
    ax.set_xlabel("training step")
    if len(run.steps) > 1:
        ax.set_xlim(float(run.steps[0]), float(run.steps[-1]))


def _colourbar(ax: Axes, shown: Any, label: str) -> None:
    bar = ax.figure.colorbar(shown, ax=ax, pad=0.02)
    bar.set_label(label)


def short(name: str) -> str:
    """A name without the ending that nearly all of them have."""
    return name.replace(".weight", "")
