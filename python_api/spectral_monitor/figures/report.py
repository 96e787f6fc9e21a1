"""One self-contained HTML file about a recorded run.

Pictures are embedded, plotly's script is written into the file, and a content policy forbids the
browser to load anything else, so the file can be mailed and read without a network.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly import graph_objects as go
from plotly.colors import qualitative
from plotly.offline import get_plotlyjs
from spectral_monitor.figures import line_plots, overviews, plots
from spectral_monitor.figures.panels import to_png
from spectral_monitor.run.files import write_atomically
from spectral_monitor.run.final_agreement import agreement_with_final, is_stale
from spectral_monitor.run.reader import Run, load_run
from spectral_monitor.step.frame import Array

_POINTS = 400  # More per line make the file large and no picture clearer.
_COMPARISONS = (
    "Mean of the ten leading alignments, agreements and overlaps; dashed, in the same colour, what "
    "random directions would give. A line near its dashed one says nothing."
)
_AGREEMENTS = (
    "Agreement of the singular vectors of each matrix with those of the reference, pair by pair of "
    "equal index: 1 where both point as before, near the number in the title where they point "
    "anywhere."
)
# Bands narrower than this share of a chart's range are rounding, however far one zooms in.
_NARROWEST = 1e-6
_CLUSTERS = (
    "Agreement of one matrix with its reference, vector by vector; the same with the subspaces of "
    "clusters of singular values too close together to tell their vectors apart; and which vectors "
    "are alone (light). Where the last picture is dark, the first one need not mean anything."
)
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_PALETTE = qualitative.D3
_COLUMNS = (
    ("effective_rank", "effective rank"),
    ("stable_rank", "stable rank"),
    ("spectral_norm", "σ₁"),
    ("frobenius_norm", "Frobenius norm"),
    ("agreement_score", "agreement (by chance)"),
)


def write_report(
    run: Run | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    matrix: str | None = None,
    pair: tuple[str, str] | None = None,
    others: Mapping[str, Run] | None = None,
) -> Path:
    """Write the report of a run, ``report.html`` in its folder by default.

    Claims, a summary and the configuration are taken from ``summary.json`` and ``config.json``.
    Where vectors were saved for a comparison with the end of the run, it is made first.

    Args:
        run: a run, or its folder.
        path: the file to write.
        title: heading; the names of the folders by default.
        matrix: whose singular values are shown, see `spectral_monitor.figures.plots`.
        pair: whose alignment is shown.
        others: further runs by label, for a comparison under the same scales.

    Returns:
        Where the report is.

    Raises:
        ValueError: the run has no frame.

    Example:
        >>> sk.write_report("runs/first").as_posix()
        'runs/first/report.html'
    """
    run = run if isinstance(run, Run) else load_run(run)
    if len(run.steps) and is_stale(run.path):
        done = agreement_with_final(run.path)
        run.agreement, run.subspace_agreement = done.agreement, done.subspace_agreement
    if not len(run.steps):
        raise ValueError(f"{run.path}: nothing was recorded, so there is nothing to report")
    path = run.path / "report.html" if path is None else Path(path)
    title = title or " / ".join(run.path.parts[-3:])
    page = _page(run, title, _images(run, matrix, pair, others or {}, title))
    write_atomically(path, page.encode())
    return path


def _page(run: Run, title: str, images: list[dict[str, str]]) -> str:
    """The text of the file."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        subtitle=f"{len(run.steps)} recorded steps, {run.steps[0]} to {run.steps[-1]}; "
        f"{len(run.matrices)} matrices, {len(run.alignment)} aligned pairs",
        # The script is the only markup that is not escaped; charts escape their own texts.
        plotly_js=Markup(get_plotlyjs()),
        claims=_claims(run.summary.get("claims", [])),
        unknown=_unknown(run),
        summary=[
            (key, _text(value))
            for key, value in run.summary.items()
            if key != "claims" and not _is_table(value)
        ],
        images=images,
        charts=_charts(run),
        has_bounds=line_plots.has_bounds(run),
        headings=["normalised", *(heading for _, heading in _COLUMNS)],
        rows=[_matrix_row(run, name) for name in run.matrices],
        pairs=[
            {
                "first": pair[0],
                "second": pair[1],
                "score": _change(line_plots.scores(diagonal)),
                "chance": _brief(run.chance.alignment.get(pair)),
            }
            for pair, diagonal in run.alignment.items()
        ],
        config=json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
    )


def _claims(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    words = {True: ("yes", "yes"), False: ("no", "no"), None: ("not tested", "")}
    rows = []
    for claim in claims:
        text, style = words.get(claim.get("holds"), (_text(claim.get("holds")), ""))
        row = {key: _text(claim.get(key)) for key in ("claim", "source", "expected", "measured")}
        rows.append({**row, "holds": text, "style": style})
    return rows


def _unknown(run: Run) -> list[dict[str, str]]:
    """Matrices that had no numbers at some steps: which, when, and why."""
    steps: dict[tuple[str, str], list[int]] = {}
    for step, reasons in run.reasons.items():
        for name, reason in reasons.items():
            steps.setdefault((name, reason), []).append(step)
    return [
        {
            "name": name,
            "reason": reason,
            "steps": f"{at[0]} to {at[-1]}" if len(at) > 1 else str(at[0]),
            "count": f"{len(at)} of {len(run.steps)}",
        }
        for (name, reason), at in steps.items()
    ]


def _is_table(value: Any) -> bool:
    """Whether a value has more numbers than anyone reads in one cell."""
    return isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values())


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _brief(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _images(
    run: Run,
    matrix: str | None,
    pair: tuple[str, str] | None,
    others: Mapping[str, Run],
    title: str,
) -> list[dict[str, str]]:
    figures = [
        (
            overviews.plot_run(run, matrix=matrix, pair=pair, columns=2),
            "Errors; all singular values of one matrix, coloured by index; normalised effective "
            "rank of every matrix; diagonal of the alignment of two layers.",
        )
    ]
    if line_plots.has_bounds(run):
        figures.append((line_plots.plot_certainty(run), _certainty_caption(run)))
    if run.alignment or run.agreement or run.overlap:
        figures.append((line_plots.plot_scores(run), _COMPARISONS))
    if run.agreement:
        figures.append((overviews.plot_agreements(run), _AGREEMENTS))
    if _has_clusters(run, matrix):
        figures.append((overviews.plot_clusters(run, matrix), _CLUSTERS))
    if others:
        figures.append(
            (overviews.plot_runs({title: run, **others}, matrix=matrix, pair=pair),
             "The same four panels of several runs, on the same scales.")
        )  # fmt: skip
    return [
        {"data": base64.b64encode(to_png(figure)).decode("ascii"), "caption": caption}
        for figure, caption in figures
    ]


def _has_clusters(run: Run, matrix: str | None) -> bool:
    name = plots.chosen_matrix(run, matrix)
    return name in run.subspace_agreement and name in run.identifiable


def _certainty_caption(run: Run) -> str:
    widest = max(
        (float(np.nanmax(bounds / run.singular_values[name][:, :1], initial=0.0))
         for name, bounds in run.singular_value_bounds.items()),
        default=0.0,
    )  # fmt: skip
    work = "; and what the tracker did with how many matrices." if run.work else "."
    return (
        "Effective and stable rank of every matrix in the band of their proved bounds, drawn wider "
        "where the title says so, since it would be thinner than the line; bounds of the singular "
        f"values, at most {widest:.2g} of the largest one" + work
    )


def _charts(run: Run) -> list[Markup]:
    recorded = {name: v for name, v in run.scalars.items() if np.isfinite(v).any()}
    own: dict[str, dict[str, Array]] = {
        name: {name: recorded.pop(name)} if name in recorded else {}
        for name in ("overhead", "every", "not_finite")
    }
    # A line that says the same at every step, as it should, is no picture.
    if all(np.all(values == values[0]) for values in own["every"].values()):
        own["every"] = {}
    if not any(np.any(values > 0) for values in own["not_finite"].values()):
        own["not_finite"] = {}
    losses = {name: recorded.pop(name) for name in list(recorded) if "loss" in name}
    scores = {
        f"{a} → {b}": line_plots.scores(diagonal) for (a, b), diagonal in run.alignment.items()
    }
    chance = {f"{a} → {b}": value for (a, b), value in run.chance.alignment.items()}
    # Entropies of large and small matrices are far apart, and what falls in them does not show.
    ranks = {name: run.normalized(name, values)
             for name, values in run.metrics["effective_rank_exp"].items()}  # fmt: skip
    rank_bounds = {name: run.normalized(name, values)
                   for name, values in _bounds_of(run, "effective_rank_exp").items()}  # fmt: skip
    stable = run.metrics["stable_rank"]
    wanted = [
        _Chart("Losses", "loss", losses, log=True),
        _Chart("Accuracies and other scalars", "value", recorded),
        _Chart("Effective rank, normalised", "exp(H) / r", ranks, bounds=rank_bounds),
        _Chart("Stable rank", "‖A‖²_F / σ₁²", stable, bounds=_bounds_of(run, "stable_rank")),
        _Chart("Alignment score", "mean of 10 leading entries", scores, chance=chance),
        _Chart("Agreement score", "mean of 10 leading entries",
               {name: line_plots.scores(values) for name, values in run.agreement.items()},
               chance=run.chance.agreement),
        _Chart("What the monitor takes", "share of the time", own["overhead"]),
        _Chart("How often it measures", "steps between measurements", own["every"]),
        _Chart("Matrices without numbers", "matrices", own["not_finite"]),
    ]  # fmt: skip
    return [_draw(run, chart) for chart in wanted if chart.lines]


@dataclass(frozen=True, slots=True)
class _Chart:
    """Lines by name, with bands and levels of the same names."""

    title: str
    unit: str
    lines: Mapping[str, Array]
    log: bool = False
    bounds: Mapping[str, Array] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)


def _bounds_of(run: Run, metric: str) -> dict[str, Array]:
    """Bounds by matrix of those that a reader who zooms in can see."""
    lines = run.metrics[metric]
    finite = np.concatenate([values[np.isfinite(values)] for values in lines.values()])
    seen = _NARROWEST * float(np.ptp(finite)) if len(finite) else 0.0
    bounds = {name: run.bound(metric, name) for name in lines}
    return {
        name: values
        for name, values in bounds.items()
        if values is not None and np.nanmax(values, initial=0.0) >= seen
    }


def _draw(run: Run, chart: _Chart) -> Markup:
    figure = go.Figure()
    for i, (name, values) in enumerate(chart.lines.items()):
        colour = _PALETTE[i % len(_PALETTE)]
        shown = np.flatnonzero(np.isfinite(values))
        if len(shown) > _POINTS:
            shown = shown[np.unique(np.linspace(0, len(shown) - 1, _POINTS).astype(int))]
        x, label = run.steps[shown].tolist(), _escape(name)
        # One group: a click on the name hides the line with all that belongs to it.
        aside = {"legendgroup": label, "showlegend": False, "hoverinfo": "skip", "mode": "lines"}
        if name in chart.bounds:
            low, high = values - chart.bounds[name], values + chart.bounds[name]
            figure.add_scatter(
                x=x + x[::-1], y=_rounded([*high[shown], *low[shown][::-1]]), fill="toself",
                fillcolor=colour, opacity=0.2, line={"width": 0}, **aside,
            )  # fmt: skip
        if name in chart.chance and x:
            figure.add_scatter(
                x=[x[0], x[-1]], y=_rounded([chart.chance[name]] * 2),
                line={"dash": "dash", "width": 1, "color": colour}, **aside,
            )  # fmt: skip
        figure.add_scatter(
            x=x, y=_rounded(values[shown]), name=label, mode="lines",
            legendgroup=label, line={"color": colour},
        )  # fmt: skip
    figure.update_layout(
        title=chart.title + (", dashed: by chance" if chart.chance else ""),
        xaxis_title="training step", yaxis_title=chart.unit, template="plotly_white",
        height=380, margin={"l": 60, "r": 20, "t": 50, "b": 50}, legend={"font": {"size": 11}},
        showlegend=True,
    )  # fmt: skip
    if chart.log:
        figure.update_yaxes(type="log", exponentformat="power", **_decades(chart.lines.values()))
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={"displaylogo": False, "responsive": True},
        )
    )


def _decades(lines: Iterable[Array]) -> dict[str, int]:
    """Ticks at powers of ten alone, where there are enough of them."""
    positive = np.concatenate([values[np.isfinite(values) & (values > 0)] for values in lines])
    enough = len(positive) and positive.max() > 100 * positive.min()
    return {"dtick": 1} if enough else {}


def _rounded(values: Sequence[float] | Array) -> list[float]:
    # So many digits that bounds of a tracker do not become steps.
    return [float(f"{value:.7g}") for value in values]


def _escape(text: str) -> str:
    # plotly reads a few HTML tags in its texts.
    return str(Markup.escape(text))


def _matrix_row(run: Run, name: str) -> dict[str, Any]:
    cells = [_change(run.normalized(name, run.metrics["effective_rank_exp"][name]))]
    for metric, _ in _COLUMNS:
        values = run.metrics.get(metric, {}).get(name)
        if metric == "agreement_score" and name in run.agreement:
            values = line_plots.scores(run.agreement[name])
        cells.append("–" if values is None else _change(values))
    chance = run.chance.agreement.get(name)
    cells[-1] += "" if chance is None or cells[-1] == "–" else f" ({chance:.2g})"
    return {"name": name, "cells": cells}


def _change(values: Array) -> str:
    first, last = (f"{float(v):.3g}" if np.isfinite(v) else "–" for v in (values[0], values[-1]))
    return f"{first} → {last}"
