"""The one file that knows matplotlib: empty panels, and what several plots draw on them.

pyplot is not used, so no figure stays open behind the caller's back.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes as Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from spectral_monitor.run.reader import Run
from spectral_monitor.step.frame import Array

_COLOURS = "viridis"
# A band narrower than this share of the axis looks like the line.
VISIBLE = 0.004


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return Figure((width, height), layout=ConstrainedLayoutEngine(wspace=0.05, hspace=0.04))


def grid(lines: int, columns: int, *, width: float = 6.4, height: float = 4.4) -> Figure:
    """A figure of ``lines`` x ``columns`` empty panels of this size in inches."""
    figure = figure_of(width * columns, height * lines)
    figure.subplots(lines, columns, squeeze=False)
    return figure


def panel(ax: Axes | None) -> Axes:
    """The axes that were given, or the axes of a new figure."""
    return grid(1, 1).axes[0] if ax is None else ax


def to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def colours(count: int) -> list[Any]:
    """Colours of so many lines, from dark to light."""
    return list(colormaps[_COLOURS](np.linspace(0, 1, count))) if count > 1 else ["C0"]


def lines_by_index(ax: Axes, run: Run, values: Array, label: str) -> None:
    """Draw the columns of (T, r) over time, coloured by index."""
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
    _colourbar(ax, lines, label)


def say(ax: Axes, text: str) -> None:
    """Write in the middle of empty axes."""
    ax.text(0.5, 0.5, text, ha="center", va="center", color="gray", transform=ax.transAxes)
    ax.set_axis_off()


def line(ax: Axes, steps: Any, values: Array, **style: Any) -> None:
    """Draw one line."""
    # Scalars that were not passed at every step leave gaps, which a line would not cross.
    finite = np.isfinite(values)
    ax.plot(steps[finite], values[finite], **style)


def heatmap(ax: Axes, run: Run, data: Array, label: str, limit: float | None) -> None:
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
    """Tick the vertical axis at whole numbers alone."""
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def time_axis(ax: Axes, run: Run) -> None:
    """Steps from the first to the last recorded one."""
    ax.set_xlabel("training step")
    if len(run.steps) > 1:
        ax.set_xlim(float(run.steps[0]), float(run.steps[-1]))


def _colourbar(ax: Axes, shown: Any, label: str) -> None:
    bar = ax.figure.colorbar(shown, ax=ax, pad=0.02)
    bar.set_label(label)


def short(name: str) -> str:
    """A name without the ending that nearly all of them have."""
    return name.replace(".weight", "")
