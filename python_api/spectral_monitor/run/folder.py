"""The files of a run folder: what a record of ``spectra.bin`` holds, and repairs after a kill.

A record has the arrays of a frame, in the order of columns. What a kill leaves is cut back to whole
frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spectral_monitor.run.files import read_layout
from spectral_monitor.run.half_precision import HalfPrecision
from spectral_monitor.run.saved_vectors import truncate_vectors
from spectral_monitor.step.frame import SpectralFrame
from spectral_monitor.step.joined_arrays import JoinedArrays
from spectral_monitor.step.row_table import RowTable, spectra_of

_NONE: JoinedArrays[Any] = JoinedArrays.of({})


def record_type(layout: dict[str, Any]) -> np.dtype[Any]:
    """NumPy type of one record of ``spectra.bin``."""
    length = sum(column["length"] for column in layout["columns"])
    if layout.get("precision", "full") == "full":
        return np.dtype([("step", "<i8"), ("values", layout["dtype"], (length,))])
    scales = ("scales", layout["dtype"], (len(layout["columns"]),))
    return np.dtype([("step", "<i8"), scales, ("codes", "<u2", (length,))])


def half_precision(columns: Sequence[tuple[str, Any, int]], dtype: str) -> HalfPrecision:
    """How records of these columns are encoded."""
    place = {(group, name): i for i, (group, name, _) in enumerate(columns)}
    values = {
        i: place.get(("singular_value_bounds", name))
        for (group, name), i in place.items()
        if group == "singular_values"
    }
    bounds = [i for (group, _), i in place.items() if group == "singular_value_bounds"]
    return HalfPrecision([length for _, _, length in columns], values, bounds, dtype)


def groups_of(frame: SpectralFrame, leading: int | None) -> list[tuple[str, JoinedArrays[Any]]]:
    """The arrays of a frame by group, so many leading entries of each."""
    groups = _all_groups(frame)
    if leading is None:
        return groups
    return [
        (group, JoinedArrays.of({name: array[:leading] for name, array in views.items()}))
        for group, views in groups
    ]


def _all_groups(frame: SpectralFrame) -> list[tuple[str, JoinedArrays[Any]]]:
    rows = frame.matrices
    values, bounds = spectra_of(rows, list(rows))
    groups: list[tuple[str, JoinedArrays[Any]]] = [("singular_values", values)]
    # Those of the exact method are rounding levels, known from sigma_1.
    if not isinstance(rows, RowTable):
        bounds = JoinedArrays.of({n: bounds[n] for n, row in rows.items() if not row.bounds_follow})
    elif rows.bounds_follow:
        bounds = _NONE
    groups.append(("singular_value_bounds", bounds))
    for group in ("alignment", "agreement", "subspace_agreement", "identifiable", "overlap"):
        arrays = getattr(frame, group)
        groups.append((group, JoinedArrays.of(arrays) if arrays else _NONE))
    return groups


def columns_of(groups: list[tuple[str, JoinedArrays[Any]]]) -> list[tuple[str, Any, int]]:
    """Group, name and length of each column."""
    return [
        (group, name, place.stop - place.start)
        for group, views in groups
        for name, place in views.slices.items()
    ]


METRICS_FILE = "metrics.jsonl"
ARRAYS = "spectra.bin"
LAYOUT = "spectra.json"
VERSIONS = (1, 2)


def repair(run_dir: Path, resume_from: int | None) -> tuple[int | None, int]:
    """Cut torn ends off, and records after ``resume_from``.

    Returns the last step that is left, and how many frames.

    The binary files may be one record ahead of the metrics, by a kill between the two writes.
    """
    last, count = _repair_metrics(run_dir / METRICS_FILE, resume_from)
    truncate_vectors(run_dir, last)
    path = run_dir / ARRAYS
    layout = read_layout(run_dir / LAYOUT, *VERSIONS)
    if last is None:
        # Nothing is recorded: the next frame may have other matrices.
        path.unlink(missing_ok=True)
        (run_dir / LAYOUT).unlink(missing_ok=True)
    elif layout is not None and path.exists():
        kind = record_type(layout)
        steps = np.fromfile(path, dtype=kind, count=path.stat().st_size // kind.itemsize)["step"]
        os.truncate(path, int(np.count_nonzero(steps <= last)) * kind.itemsize)
    return last, count


def _repair_metrics(path: Path, resume_from: int | None) -> tuple[int | None, int]:
    if not path.exists():
        return None, 0
    last, end, count = None, 0, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                step = int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: line {number} is not a record of a step") from error
            if resume_from is not None and step > resume_from:
                break
            last, end, count = step, end + len(line), count + 1
    os.truncate(path, end)
    return last, count
