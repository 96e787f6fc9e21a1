"""One self-contained HTML file about a recorded run.

Pictures are embedded, plotly's script is written into the file, and a content policy forbids the
browser to load anything else, so the file can be mailed and read without a network.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from python_api import plots
from python_api.frame import Array, alignment_score
from python_api.run import Run, load_run

__all__ = ["write_report"]

_POINTS = 400  # More per line make the file large and no picture clearer.
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_COLUMNS = (
    ("effective_rank", "effective rank"),
    ("stable_rank", "stable rank"),
    ("spectral_norm", "σ₁"),
    ("frobenius_norm", "Frobenius norm"),
    ("agreement_score", "agreement"),
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

    Args:
        run: a run, or its folder.
        path: the file to write.
        title: heading; the names of the folders by default.
        matrix: whose singular values are shown, see `python_api.plots`.
        pair: whose alignment is shown.
        others: further runs by label, for a comparison under the same scales.

    Returns:
        Where the report is.

    Raises:
        ValueError: the run has no frame.
    """
    run = run if isinstance(run, Run) else load_run(run)
    if not len(run.steps):
        raise ValueError(f"{run.path}: nothing was recorded, so there is nothing to report")
    path = run.path / "report.html" if path is None else Path(path)
    title = title or " / ".join(run.path.parts[-3:])
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        subtitle=f"{len(run.steps)} recorded steps, {run.steps[0]} to {run.steps[-1]}; "
        f"{len(run.matrices)} matrices, {len(run.alignment)} aligned pairs",
        # The script is the only markup that is not escaped; charts escape their own texts.
        plotly_js=Markup(get_plotlyjs()),
        claims=_claims(run.summary.get("claims", [])),
        summary=[(key, _text(v)) for key, v in run.summary.items() if key != "claims"],
        images=_images(run, matrix, pair, others or {}, title),
        charts=_charts(run),
        headings=["normalised", *(heading for _, heading in _COLUMNS)],
        rows=[_matrix_row(run, name) for name in run.matrices],
        pairs=[
            {"first": a, "second": b, "score": _change(_scores(diagonal))}
            for (a, b), diagonal in run.alignment_over_heads().items()
        ],
        config=json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
    )
    draft = path.with_suffix(".tmp")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path


def _claims(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    words = {True: ("yes", "yes"), False: ("no", "no"), None: ("not tested", "")}
    rows = []
    for claim in claims:
        text, style = words.get(claim.get("holds"), (_text(claim.get("holds")), ""))
        row = {key: _text(claim.get(key)) for key in ("claim", "source", "expected", "measured")}
        rows.append({**row, "holds": text, "style": style})
    return rows


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


def _images(
    run: Run,
    matrix: str | None,
    pair: tuple[str, str] | None,
    others: Mapping[str, Run],
    title: str,
) -> list[dict[str, str]]:
    figures = [
        (
            plots.figure2(run, matrix=matrix, pair=pair),
            "Errors; all singular values of one matrix, coloured by index; normalised effective "
            "rank of every matrix; diagonal of the alignment of two layers.",
        )
    ]
    if run.agreement:
        figures.append((plots.agreements(run), "Agreement of singular vectors with the reference."))
    if others:
        figures.append(
            (plots.compare({title: run, **others}, matrix=matrix, pair=pair),
             "The same four panels of several runs, on the same scales.")
        )  # fmt: skip
    return [
        {"data": base64.b64encode(plots.to_png(figure)).decode("ascii"), "caption": caption}
        for figure, caption in figures
    ]


def _charts(run: Run) -> list[Markup]:
    recorded = {name: v for name, v in run.scalars.items() if np.isfinite(v).any()}
    own: dict[str, Array] = {
        name: recorded.pop(name) for name in ("overhead", "not_finite") if name in recorded
    }
    losses = {name: recorded.pop(name) for name in list(recorded) if "loss" in name}
    scores = {
        f"{a} → {b}": _scores(diagonal) for (a, b), diagonal in run.alignment_over_heads().items()
    }
    wanted: list[tuple[str, str, Mapping[str, Array], bool]] = [
        ("Losses", "loss", losses, True),
        ("Accuracies and other scalars", "value", recorded, False),
        ("Effective rank", "entropy of σ / Σσ (nats)", run.metrics["effective_rank"], False),
        ("Stable rank", "‖A‖²_F / σ₁²", run.metrics["stable_rank"], False),
        ("Alignment score", "mean of 10 leading entries", scores, False),
        ("The monitor itself", "share of time; matrices with NaN", own, False),
    ]
    return [_chart(run, *arguments) for arguments in wanted if arguments[2]]


def _chart(run: Run, title: str, unit: str, lines: Mapping[str, Array], log: bool) -> Markup:
    figure = go.Figure()
    for name, values in lines.items():
        known = np.flatnonzero(np.isfinite(values))
        if len(known) > _POINTS:
            known = known[np.unique(np.linspace(0, len(known) - 1, _POINTS).astype(int))]
        figure.add_scatter(
            x=run.steps[known].tolist(),
            y=[float(f"{value:.5g}") for value in values[known]],
            name=_escape(name),
            mode="lines",
        )
    figure.update_layout(
        title=title, xaxis_title="training step", yaxis_title=unit, template="plotly_white",
        height=380, margin={"l": 60, "r": 20, "t": 50, "b": 50}, legend={"font": {"size": 11}},
        showlegend=True,
    )  # fmt: skip
    if log:
        figure.update_yaxes(type="log", exponentformat="power")
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={"displaylogo": False, "responsive": True},
        )
    )


def _escape(text: str) -> str:
    # plotly reads a few HTML tags in its texts.
    return str(Markup.escape(text))


def _matrix_row(run: Run, name: str) -> dict[str, Any]:
    with np.errstate(invalid="ignore", divide="ignore"):
        share = run.metrics["normalized_effective_rank"][name] / run.metrics["effective_rank"][name]
        normalized = run.metrics["effective_rank_exp"][name] * share
    cells = [_change(normalized)]
    for metric, _ in _COLUMNS:
        values = run.metrics.get(metric, {}).get(name)
        cells.append("–" if values is None else _change(values))
    return {"name": name, "cells": cells}


def _scores(diagonal: Array) -> Array:
    return np.array([alignment_score(row) for row in np.asarray(diagonal)])


def _change(values: Array) -> str:
    first, last = (f"{float(v):.3g}" if np.isfinite(v) else "–" for v in (values[0], values[-1]))
    return f"{first} → {last}"
