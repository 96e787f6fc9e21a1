"""`Recorder`: frames into a run folder, append-only, readable after a kill at any moment.

Three files, and two of `python_api.saved_vectors` where vectors are saved:

``metrics.jsonl``
    One JSON object per frame with flat keys: ``step``, the caller's scalars, ``overhead``,
    ``every`` (steps between measurements), ``not_finite`` (how many matrices have no numbers: NaN
    or infinity is in them, or they could not be read) and, where there are such, ``reasons`` (why,
    by name), ``<metric>/<matrix>``, ``alignment_score/<a> -> <b>``, ``agreement_score/<matrix>``;
    where the method is not exact, ``bound/<metric>/<matrix>``; and ``work/<what>``, how many
    matrices a tracker kept, rotated or solved anew. What is not a finite number is ``null``.
    ``pandas.read_json(path, lines=True)`` reads it.

``spectra.bin``, ``spectra.json``
    Singular values and their bounds, alignment diagonals, agreement of vectors and of clusters,
    which vectors are identifiable (1 or 0), overlaps of updates and gradients. Binary, since as
    text they would cost more time than their computation: records of equal size, an int64 step
    and then the values in the order of ``spectra.json``'s columns, all little-endian. What
    chance would give stands in ``spectra.json`` too.

A record reaches the operating system in one write, the binary one first, so a killed process
loses at most the record it was writing. A torn end is cut off when the folder is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from io import FileIO
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np

from python_api.chance import Chance
from python_api.files import append, read_layout, write_atomically
from python_api.frame import SpectralFrame
from python_api.loggers import Sink
from python_api.metric_lines import MetricLines
from python_api.packed_rows import PackedRows, spectra_of
from python_api.run_lock import RunLock
from python_api.saved_vectors import VectorWriter, truncate_vectors
from python_api.views import ArrayViews

__all__ = ["ARRAYS", "LAYOUT", "METRICS_FILE", "Recorder", "record_type", "saves_vectors"]

METRICS_FILE = "metrics.jsonl"
ARRAYS = "spectra.bin"
LAYOUT = "spectra.json"
_VERSION = 1
_NONE: ArrayViews[Any] = ArrayViews.of({})


class Recorder:
    """Writes frames to a run folder, which it makes if need be.

    Args:
        run_dir: the folder. If it has records already, this recorder goes on after them.
        resume_from: drop records of later steps first, since training goes on from the
            checkpoint of this step; -1 drops all.
        vectors: "float16" or "float32": how vectors are saved, where the monitor gives them
            (``reference="final"``); see `python_api.saved_vectors`.

    The folder is this recorder's until it is closed, see `python_api.run_lock`: another one, of
    this or another process, is refused. What a killed process has left is taken over with a
    warning.

    Raises:
        ValueError: another writer has the folder, it holds something that this class did not write,
            or another dtype.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        resume_from: int | None = None,
        vectors: str = "float16",
    ) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(self.run_dir)
        try:
            self._open(resume_from, vectors)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, resume_from: int | None, vectors: str) -> None:
        self.last_step = repair(self.run_dir, resume_from)
        self.vector_dtype = vectors
        self._vectors = VectorWriter(self.run_dir, vectors)
        self._layout = read_layout(self.run_dir / LAYOUT, _VERSION)
        self._columns: list[tuple[str, Any, int]] = []
        # Where the arrays of the last frame were: mostly the same objects at every step.
        self._seen: list[Any] = []
        self._lines = MetricLines()
        self._metrics: FileIO | None = open(self.run_dir / METRICS_FILE, "ab", buffering=0)  # noqa: SIM115
        self._arrays: FileIO = open(self.run_dir / ARRAYS, "ab", buffering=0)  # noqa: SIM115

    def write(self, frame: SpectralFrame) -> None:
        """Append one frame.

        Raises:
            ValueError: the recorder is closed, the step does not come after the last one, the frame
                has other matrices than those recorded before, or this is a forked child.
        """
        if self._metrics is None:
            raise ValueError(f"the recorder of {self.run_dir} is closed")
        self._lock.check()
        if self.last_step is not None and frame.step <= self.last_step:
            raise ValueError(
                f"{self.run_dir} has records up to step {self.last_step}, got step {frame.step}; "
                f"pass resume_from={frame.step - 1} to drop the later ones, or choose another "
                "folder"
            )
        groups = _groups(frame)
        self._check(frame, groups)
        record = self._record
        record["step"] = frame.step
        blocks = [views.block for _, views in groups]
        np.concatenate(blocks, out=record["values"][0], casting="same_kind")
        if frame.vectors:
            self._vectors.write(frame.step, frame.vectors)
        append(self._arrays, record)
        append(self._metrics, (self._lines.line(frame) + "\n").encode())
        self.last_step = frame.step

    def close(self) -> None:
        """Close the files; closing twice is fine."""
        if self._metrics is not None:
            self._metrics.close()
            self._arrays.close()
            self._vectors.close()
            self._metrics = None
            self._lock.release()

    def __reduce__(self) -> str:
        raise TypeError(
            f"a Recorder is the one writer of {self.run_dir} and cannot be copied or pickled; open "
            "another where training goes on, once this one is closed"
        )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, frame: SpectralFrame, groups: list[tuple[str, ArrayViews[Any]]]) -> None:
        """Raise ValueError where a frame has other columns than those of the folder."""
        places = [views.slices for _, views in groups]
        if len(places) == len(self._seen) and all(map(is_, places, self._seen)):
            return
        columns = _columns(groups)
        if not self._columns:
            self._start(columns, groups, frame.chance)
        if columns != self._columns:
            raise ValueError(
                f"{self.run_dir}: the frame of step {frame.step} has other matrices, pairs or "
                "lengths than those recorded before; choose another folder"
            )
        self._seen = places

    def _start(
        self,
        columns: list[tuple[str, Any, int]],
        groups: list[tuple[str, ArrayViews[Any]]],
        chance: Chance,
    ) -> None:
        """Fix the order of the columns: that of the folder, or else of this first frame."""
        # Bounds are float64 always, and are not worth it.
        wide = any(
            views.block.dtype == np.float64 and len(views)
            for group, views in groups
            if group != "singular_value_bounds"
        )
        kind = "<f8" if wide else "<f4"
        layout = {
            "version": _VERSION,
            "dtype": kind,
            "chance": chance.to_json(),
            "columns": [{"group": g, "name": name, "length": size} for g, name, size in columns],
        }
        if self._layout is None:
            write_atomically(self.run_dir / LAYOUT, json.dumps(layout, indent=1).encode())
            self._layout = json.loads(json.dumps(layout))
        self._columns = [
            (c["group"], tuple(c["name"]) if isinstance(c["name"], list) else c["name"],
             c["length"])
            for c in self._layout["columns"]
        ]  # fmt: skip
        self._record = np.zeros(1, dtype=record_type(self._layout))


def saves_vectors(sinks: Sequence[Sink]) -> str:
    """The dtype in which a recorder among the sinks saves vectors.

    Raises:
        ValueError: there is no `Recorder`.
    """
    for sink in sinks:
        if isinstance(sink, Recorder):
            return sink.vector_dtype
    raise ValueError(
        "reference: 'final' compares saved vectors when the run is over; expected a Recorder to "
        "save them, such as recorder=Recorder(run_dir)"
    )


def record_type(layout: dict[str, Any]) -> np.dtype[Any]:
    """NumPy type of one record of ``spectra.bin``."""
    length = sum(column["length"] for column in layout["columns"])
    return np.dtype([("step", "<i8"), ("values", layout["dtype"], (length,))])


def repair(run_dir: Path, resume_from: int | None) -> int | None:
    """Cut torn ends off, and records after ``resume_from``; return the last step that is left.

    The binary files may be one record ahead of the metrics, by a kill between the two writes.
    """
    last = _repair_metrics(run_dir / METRICS_FILE, resume_from)
    truncate_vectors(run_dir, last)
    path = run_dir / ARRAYS
    layout = read_layout(run_dir / LAYOUT, _VERSION)
    if last is None:
        # Nothing is recorded: the next frame may have other matrices.
        path.unlink(missing_ok=True)
        (run_dir / LAYOUT).unlink(missing_ok=True)
    elif layout is not None and path.exists():
        kind = record_type(layout)
        steps = np.fromfile(path, dtype=kind, count=path.stat().st_size // kind.itemsize)["step"]
        os.truncate(path, int(np.count_nonzero(steps <= last)) * kind.itemsize)
    return last


def _repair_metrics(path: Path, resume_from: int | None) -> int | None:
    if not path.exists():
        return None
    last, end = None, 0
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
            last, end = step, end + len(line)
    os.truncate(path, end)
    return last


def _groups(frame: SpectralFrame) -> list[tuple[str, ArrayViews[Any]]]:
    """The arrays of a frame by group."""
    rows = frame.matrices
    values, bounds = spectra_of(rows, list(rows))
    groups: list[tuple[str, ArrayViews[Any]]] = [("singular_values", values)]
    # Those of the exact method are rounding levels, known from sigma_1.
    if not isinstance(rows, PackedRows):
        bounds = ArrayViews.of({n: bounds[n] for n, row in rows.items() if row.method != "exact"})
    elif rows.is_exact:
        bounds = _NONE
    groups.append(("singular_value_bounds", bounds))
    for group in ("alignment", "agreement", "subspace_agreement", "identifiable", "overlap"):
        arrays = getattr(frame, group)
        groups.append((group, ArrayViews.of(arrays) if arrays else _NONE))
    return groups


def _columns(groups: list[tuple[str, ArrayViews[Any]]]) -> list[tuple[str, Any, int]]:
    return [
        (group, name, place.stop - place.start)
        for group, views in groups
        for name, place in views.slices.items()
    ]
