"""Frames as lines of JSON, at a third of the cost of ``json.dumps``.

The names of the numbers are the same at every step, so they become a format string once, and a line
is one formatting of some two hundred floats. Values have 17 digits, which read back as the same
float64; bounds have 9. In half precision values have 8 and bounds 3, rounded up and with the
rounding of their values in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from operator import attrgetter, is_
from typing import Any

import numpy as np
from spectral_monitor.step.frame import Array, MatrixRow, SpectralFrame, alignment_score, pair_name
from spectral_monitor.step.joined_arrays import JoinedArrays
from spectral_monitor.step.row_table import RowTable, reasons_of

from spectral_kernels.entry.results import METRICS
from spectral_kernels.runtime.limits import SCORE_ENTRIES

# Half a unit of the eighth digit of a value, and of the third of a bound, at most.
_VALUE_ROUNDING, _BOUND_ROUNDING = 1e-7, 1.006
_values_of = attrgetter(*METRICS)


class MetricLines:
    """Turns frames into lines; fast while they have the same matrices and pairs.

    Args:
        half: fewer digits, see above.
    """

    def __init__(self, *, half: bool = False) -> None:
        self._half = half
        self._digits, self._bound_digits = ("%.8g", "%.3g") if half else ("%.17g", "%.9g")
        self._key: Hashable = None
        self._places: tuple[object, ...] = (None, None, None)
        self._heads: list[Any] = [None, None]
        self._names: list[str] = []
        self._quoted: dict[str, str] = {}
        self._format = ""

    def short(self, frame: SpectralFrame) -> str:
        """`line` without the numbers of matrices and pairs."""
        return f"{{{self._items({'step': frame.step, **_of_frame(frame)})}}}"

    def line(self, frame: SpectralFrame) -> str:
        """One JSON object with flat keys, without a line feed; not finite numbers are null."""
        rows = frame.matrices
        # The same objects at every step of a monitor; else by name.
        places = (
            rows.values_of.slices if isinstance(rows, RowTable) else _methods(rows),
            _place(frame.alignment),
            _place(frame.agreement),
        )
        if not all(map(is_, places, self._places)):
            key = (_methods(rows), tuple(frame.alignment), tuple(frame.agreement))
            if key != self._key:
                self._plan(frame)
                self._key = key
            self._places = places
        values = _numbers(rows)
        values += self._scores_of(frame)
        if self._half and len(self._bounds):
            table = np.array(values)
            table[self._bounds] += _VALUE_ROUNDING * np.abs(table[self._bounded])
            table[self._bounds] *= _BOUND_ROUNDING
            values = table.tolist()
        head = self._items({"step": frame.step, **_of_frame(frame)})
        reasons = reasons_of(rows)
        if reasons:
            head += f', "reasons": {json.dumps(reasons)}'
        if math.isfinite(sum(values)):
            return f"{{{head}, {self._format % tuple(values)}}}"
        return f"{{{head}, {self._items(dict(zip(self._names, values, strict=True)))}}}"

    def _items(self, values: Mapping[str, float]) -> str:
        """The inside of a JSON object; ``repr`` of a float is the JSON number."""
        quoted = self._quoted
        for name in values:
            if name not in quoted:
                quoted[name] = json.dumps(name)
        return ", ".join(
            f"{quoted[name]}: {value if math.isfinite(value) else 'null'!s}"
            for name, value in values.items()
        )

    def _scores_of(self, frame: SpectralFrame) -> list[float]:
        """`alignment_score` of all diagonals, one sum instead of one for each where it can be."""
        scores: list[float] = []
        both: tuple[Mapping[Any, Array], ...] = (frame.alignment, frame.agreement)
        for i, views in enumerate(both):
            if not isinstance(views, JoinedArrays):
                scores += [alignment_score(diagonal) for diagonal in views.values()]
                continue
            if self._heads[i] is None or self._heads[i].slices is not views.slices:
                self._heads[i] = _Heads(views.slices)
            scores += self._heads[i].scores(views.block)
        return scores

    def _plan(self, frame: SpectralFrame) -> None:
        rows = frame.matrices
        digits = self._digits
        items = [(f"{metric}/{name}", digits) for name in rows for metric in METRICS]
        start = len(items)
        bounded = [(name, i) for i, (name, row) in enumerate(rows.items()) if not row.bounds_follow]
        items += [
            (f"bound/{metric}/{name}", self._bound_digits)
            for name, _ in bounded
            for metric in METRICS
        ]
        self._bounds = np.arange(start, len(items))
        self._bounded = np.array(
            [len(METRICS) * i + j for _, i in bounded for j in range(len(METRICS))], dtype=np.int64
        )
        items += [(f"normalized_effective_rank/{name}", digits) for name in rows]
        items += [(f"alignment_score/{pair_name(pair)}", digits) for pair in frame.alignment]
        items += [(f"agreement_score/{name}", digits) for name in frame.agreement]
        self._names = [name for name, _ in items]
        # A percent sign in a name would be taken for a number's place.
        quoted = [(json.dumps(name).replace("%", "%%"), form) for name, form in items]
        self._format = ", ".join(f"{name}: {form}" for name, form in quoted)


def _of_frame(frame: SpectralFrame) -> dict[str, float]:
    """Numbers of the frame as a whole; their names may change from step to step."""
    rows = frame.matrices
    if isinstance(rows, RowTable):
        finite, work = rows.finite, rows.work
    else:
        finite = [row.finite for row in rows.values()]
        work = [row.work for row in rows.values()]
    own = {"overhead": frame.overhead, "every": frame.every, "not_finite": finite.count(False)}
    done = {f"work/{what}": work.count(what) for what in dict.fromkeys(work) if what}
    return {**frame.scalars, **own, **done}


def _methods(rows: Mapping[str, MatrixRow]) -> tuple[tuple[str, bool], ...]:
    return tuple((name, not row.bounds_follow) for name, row in rows.items())


def _place(views: Mapping[Any, Array]) -> object:
    return views.slices if isinstance(views, JoinedArrays) else None


def _numbers(rows: Mapping[str, MatrixRow]) -> list[float]:
    """Metrics of all rows, their bounds where the method is not exact, normalised ranks."""
    if isinstance(rows, RowTable):
        tables = rows.tables[:1] if rows.bounds_follow else rows.tables
        values: list[float] = tables.ravel().tolist()
        values += (rows.tables[0, :, 0] / rows.plan.sides).tolist()
        return values
    values = [value for row in rows.values() for value in _values_of(row)]
    for row in rows.values():
        if not row.bounds_follow:
            values += row.metric_bounds
    return values + [row.normalized_effective_rank for row in rows.values()]


class _Heads:
    """The first ten entries of arrays that lie in one block, and their means."""

    def __init__(self, slices: Mapping[Any, slice]) -> None:
        heads = [np.arange(s.start, min(s.stop, s.start + SCORE_ENTRIES)) for s in slices.values()]
        self.slices = slices
        self._counts = np.array([len(head) for head in heads])
        self._index = np.concatenate(heads)
        self._starts = np.cumsum(self._counts) - self._counts

    def scores(self, block: Array) -> list[float]:
        """One mean per array; NaN of none."""
        if not self._counts.all():
            # The sum of nothing is nothing that reduceat knows.
            return [alignment_score(block[s]) for s in self.slices.values()]
        sums = np.add.reduceat(block[self._index], self._starts, dtype=np.float64)
        means: list[float] = (sums / self._counts).tolist()
        return means
