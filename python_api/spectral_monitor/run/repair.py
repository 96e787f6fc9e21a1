"""What a kill leaves of a run folder, cut back to whole frames."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from spectral_monitor.run.files import read_layout
from spectral_monitor.run.records import record_type
from spectral_monitor.run.saved_vectors import truncate_vectors

__all__ = ["ARRAYS", "LAYOUT", "METRICS_FILE", "VERSIONS", "repair"]

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
