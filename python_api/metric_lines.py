"""Frames as lines of JSON, at a third of the cost of ``json.dumps``.

The names of the numbers are the same at every step, so they become a format string once, and a line
is one formatting of some two hundred floats. Values have 17 digits, which read back as the same
float64; bounds have 9.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from python_api.frame import Array, SpectralFrame, alignment_score, pair_name
from spectral_kernels.results import METRICS

__all__ = ["MetricLines"]

_TOP = 10  # Eq. 4
_values_of = attrgetter(*METRICS)


class MetricLines:
    """Turns frames into lines; fast while they have the same matrices and pairs."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._names: list[str] = []
        self._format = ""

    def line(self, frame: SpectralFrame) -> str:
        """One JSON object with flat keys, without a line feed; not finite numbers are null."""
        rows = frame.matrices.values()
        few = [row.method != "exact" for row in rows]
        key = (tuple(frame.matrices), tuple(few), tuple(frame.alignment), tuple(frame.agreement))
        if key != self._key:
            self._plan(frame, few)
            self._key = key
        values: list[float] = []
        for row in rows:
            values += _values_of(row)
            values.append(row.normalized_effective_rank)
        values += _scores([*frame.alignment.values(), *frame.agreement.values()])
        for row, bounded in zip(rows, few, strict=True):
            if bounded:
                values += row.metric_bounds
        head = _json({"step": frame.step, **_of_frame(frame)})
        if math.isfinite(sum(values)):
            return f"{head[:-1]}, {self._format % tuple(values)}}}"
        return f"{head[:-1]}, {_json(dict(zip(self._names, values, strict=True)))[1:]}"

    def _plan(self, frame: SpectralFrame, few: Sequence[bool]) -> None:
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


def _scores(diagonals: Sequence[Array]) -> list[float]:
    """`alignment_score` of many diagonals at once: one sum instead of one for each."""
    heads = [diagonal[:_TOP] for diagonal in diagonals]
    counts = [len(head) for head in heads]
    if not heads or min(counts) == 0:
        return [alignment_score(diagonal, _TOP) for diagonal in diagonals]
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(np.concatenate(heads, dtype=np.float64), starts)
    scores: list[float] = (sums / counts).tolist()
    return scores


def _json(values: Mapping[str, Any]) -> str:
    known = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return json.dumps(known, allow_nan=False)
