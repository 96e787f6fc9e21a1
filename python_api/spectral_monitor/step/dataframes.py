"""The one file that knows pandas."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame as DataFrame

COLUMNS = ("step", "matrix", "metric", "value", "bound", "reason")


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("tables need pandas: pip install 'spectral-kernels[frames]'") from error
    return pandas


def long_form(records: Iterable[dict[str, Any]]) -> DataFrame:
    """Records of one or more frames as a table: step, matrix, metric, value, bound, reason."""
    return _pandas().DataFrame.from_records(list(records), columns=list(COLUMNS))


def read_metrics(run: str | Path) -> DataFrame:
    """The ``metrics.jsonl`` of a run folder as a table, one row per step.

    The same as ``pandas.read_json(path, lines=True)``, but for a last line that a kill tore,
    which is left out.
    """
    content = (Path(run) / "metrics.jsonl").read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    return _pandas().read_json(BytesIO(whole), lines=True, precise_float=True)
