"""Pictures of a recorded run, in the manner of Figure 2 of "Spectral dynamics of weights".

Every plot of one panel takes ``ax=None``, draws on it (or on axes of a new figure) and returns
it: ``ax.figure.savefig(path)`` keeps it. Colours run from dark to light with the index of a
singular value, or with the size of what a heat map shows.
"""

from __future__ import annotations

import numpy as np
from spectral_monitor.figures.panels import (
    VISIBLE,
    Axes,
    colours,
    heatmap,
    line,
    lines_by_index,
    panel,
    short,
    time_axis,
)
from spectral_monitor.run.reader import Run
from spectral_monitor.step.frame import Array, pair_name

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

    Args:
        run: the recorded run.
        ax: axes to draw on.
        losses: whether losses are drawn beside errors, on a scale of their own.

    Raises:
        ValueError: none of these scalars was recorded.

    Example:
        >>> ax = sk.plot_errors(sk.load_run("runs/first"))
        >>> ax.get_title()
        'Errors'
    """
    ax = panel(ax)
    error, loss = split_scalars(run, "error"), split_scalars(run, "loss")
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

    Example:
        >>> ax = sk.plot_singular_values(sk.load_run("runs/first"), "0.weight")
        >>> ax.figure.savefig("values.png")
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

    Example:
        >>> ax = sk.plot_effective_rank(sk.load_run("runs/first"), form="entropy")
        >>> ax.get_title()
        'Effective rank of every matrix'
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

    Example:
        >>> ax = sk.plot_alignment(sk.load_run("runs/first"), ("0.weight", "2.weight"))
        >>> ax.get_title()
        'Alignment 0 → 2'
    """
    ax = panel(ax)
    name, diagonal = alignment_of(run, pair)
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

    Example:
        >>> ax = sk.plot_agreement(sk.load_run("runs/first"), "0.weight", clusters=True)
        >>> ax.get_title()
        'Agreement of 0 in clusters'
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

    Args:
        run: the recorded run.
        matrix: its name; as for `plot_singular_values` by default.
        ax: axes to draw on.

    Raises:
        ValueError: this was not recorded for the matrix.

    Example:
        >>> ax = sk.plot_identifiable(sk.load_run("runs/first"), "0.weight")
        >>> ax.get_ylabel()
        'index i of the singular vectors'
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


def split_scalars(run: Run, what: str) -> list[tuple[str, str, Array]]:
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


def alignment_of(run: Run, pair: tuple[str, str] | None) -> tuple[tuple[str, str], Array]:
    """The pair that panels show, see `plot_alignment`, and its alignment (T, k)."""
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
