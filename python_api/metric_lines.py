"""Frames as lines of JSON, at a third of the cost of ``json.dumps``.

The names of the numbers are the same at every step, so they become a format string once, and a line
is one formatting of some two hundred floats. Values have 17 digits, which read back as the same
float64; bounds have 9.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping
from operator import attrgetter, is_
from typing import Any

import numpy as np

from python_api.frame import Array, MatrixRow, SpectralFrame, alignment_score, pair_name
from python_api.rows import PackedRows
from python_api.views import ArrayViews
from spectral_kernels.results import METRICS

__all__ = ["MetricLines"]

_TOP = 10  # Eq. 4
_values_of = attrgetter(*METRICS)


class MetricLines:
    """Turns frames into lines; fast while they have the same matrices and pairs."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._places: tuple[object, ...] = (None, None, None)
        self._heads_of: dict[int, tuple[Any, Any, Any, Any]] = {}
        self._names: list[str] = []
        self._format = ""

    def line(self, frame: SpectralFrame) -> str:
        """One JSON object with flat keys, without a line feed; not finite numbers are null."""
        rows = frame.matrices
        # The same objects at every step of a monitor; else by name.
        places = (
            rows.values_of.slices if isinstance(rows, PackedRows) else _methods(rows),
            _place(frame.alignment),
            _place(frame.agreement),
        )
        if not all(map(is_, places, self._places)):
            key = (_methods(rows), tuple(frame.alignment), tuple(frame.agreement))
            if key != self._key:
                self._plan(frame)
                self._key = key
            self._places = places
        values, bounds = _numbers(rows)
        values += self._scores_of(frame)
        values += bounds
        head = _json({"step": frame.step, **_of_frame(frame)})
        if math.isfinite(sum(values)):
            return f"{head[:-1]}, {self._format % tuple(values)}}}"
        return f"{head[:-1]}, {_json(dict(zip(self._names, values, strict=True)))[1:]}"

    def _scores_of(self, frame: SpectralFrame) -> list[float]:
        scores: list[float] = []
        for views in (frame.alignment, frame.agreement):
            if isinstance(views, ArrayViews) and len(views):
                scores += self._heads(views)
            else:
                scores += [alignment_score(diagonal, _TOP) for diagonal in views.values()]
        return scores

    def _heads(self, views: ArrayViews[Any]) -> list[float]:
        """`alignment_score` of many diagonals at once: one sum instead of one for each."""
        known = self._heads_of.get(id(views.slices))
        if known is None or known[0] is not views.slices:
            known = self._heads_of[id(views.slices)] = (views.slices, *_first_entries(views))
        _, index, starts, counts = known
        if index is None:
            return [alignment_score(diagonal, _TOP) for diagonal in views.values()]
        sums = np.add.reduceat(views.block[index], starts, dtype=np.float64)
        scores: list[float] = (sums / counts).tolist()
        return scores

    def _plan(self, frame: SpectralFrame) -> None:
        few = [row.method != "exact" for row in frame.matrices.values()]
        exact = [
            f"{metric}/{name}"
            for name in frame.matrices
            for metric in (*METRICS, "normalized_effective_rank")
        ]
        exact += [f"alignment_score/{pair_name(pair)}" for pair in frame.alignment]
        exact += [f"agreement_score/{name}" for name in frame.agreement]
        bounds = [
            f"bound/{metric}/{name}"
            for name, bounded in zip(frame.matrices, few, strict=True)
            if bounded
            for metric in METRICS
        ]
        self._names = exact + bounds
        items = [(name, "%.17g") for name in exact] + [(name, "%.9g") for name in bounds]
        # A percent sign in a name would be taken for a number's place.
        quoted = [(json.dumps(name).replace("%", "%%"), digits) for name, digits in items]
        self._format = ", ".join(f"{name}: {digits}" for name, digits in quoted)


def _of_frame(frame: SpectralFrame) -> dict[str, float]:
    """Numbers of the frame as a whole; their names may change from step to step."""
    bad = sum(not row.finite for row in frame.matrices.values())
    own = {"overhead": frame.overhead, "every": frame.every, "not_finite": bad}
    work = Counter(row.work for row in frame.matrices.values() if row.work)
    return {**frame.scalars, **own, **{f"work/{what}": n for what, n in work.items()}}


def _methods(rows: Mapping[str, MatrixRow]) -> tuple[tuple[str, bool], ...]:
    return tuple((name, row.method != "exact") for name, row in rows.items())


def _place(views: Mapping[Any, Array]) -> object:
    return views.slices if isinstance(views, ArrayViews) else None


def _numbers(rows: Mapping[str, MatrixRow]) -> tuple[list[float], list[float]]:
    """Metrics of all rows and their bounds, where the method is not exact."""
    if isinstance(rows, PackedRows):
        metrics, radii = rows.tables
        normalized = metrics[:, :1] / rows.sides
        values: list[float] = np.concatenate([metrics, normalized], axis=1).ravel().tolist()
        return values, [] if rows.method == "exact" else radii.ravel().tolist()
    values, bounds = [], list[float]()
    for row in rows.values():
        values += (*_values_of(row), row.normalized_effective_rank)
        if row.method != "exact":
            bounds += row.metric_bounds
    return values, bounds


def _first_entries(views: ArrayViews[Any]) -> tuple[Any, Any, Any]:
    """Where the first ten entries of every array are in the block; None if one has none."""
    heads = [np.arange(s.start, min(s.stop, s.start + _TOP)) for s in views.slices.values()]
    counts = np.array([len(head) for head in heads])
    if counts.min() == 0:
        return None, None, None
    return np.concatenate(heads), np.cumsum(counts) - counts, counts


def _json(values: Mapping[str, Any]) -> str:
    known = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return json.dumps(known, allow_nan=False)
