"""`Recorder`: frames into a run folder, append-only, readable after a kill at any moment.

Three files, and two of `spectral_monitor.run.saved_vectors` where vectors are saved:

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
    and then the values in the order of ``spectra.json``'s columns, all little-endian; in half
    precision a scale for each column and 16 bits for each number (`run.half_precision`).
    What chance would give stands in ``spectra.json`` too.

A frame is whole, with the numbers of all matrices, or short: a line of ``metrics.jsonl`` with what
is of the frame as a whole. Every ``keep_every``-th is whole.

A record reaches the operating system in one write, the binary one first, so a killed process
loses at most the record it was writing. A torn end is cut off when the folder is opened again.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from io import FileIO
from operator import is_
from pathlib import Path
from typing import Any, Literal

import numpy as np
from spectral_monitor.memory import format_bytes
from spectral_monitor.run.files import append, read_layout, write_atomically
from spectral_monitor.run.folder import (
    ARRAYS,
    LAYOUT,
    METRICS_FILE,
    VERSIONS,
    columns_of,
    groups_of,
    half_precision,
    record_type,
    repair,
)
from spectral_monitor.run.lock import RunLock
from spectral_monitor.run.metric_lines import MetricLines
from spectral_monitor.run.saved_vectors import VectorWriter
from spectral_monitor.run.sinks import Sink
from spectral_monitor.step.frame import Array, SpectralFrame
from spectral_monitor.step.joined_arrays import JoinedArrays

_BYTES_PER_FRAME = 100_000


class Recorder:
    """Writes frames to a run folder, which it makes if need be.

    Args:
        run_dir: the folder. If it has records already, this recorder goes on after them.
        resume_from: drop records of later steps first, since training goes on from the
            checkpoint of this step; -1 drops all.
        vectors: "float16" or "float32": how vectors are saved, where the monitor gives them
            (``reference="final"``); see `spectral_monitor.run.saved_vectors`.
        precision: "half": 16 bits for each number of an array, 8 digits for a metric, with the
            rounding in the recorded bounds; "full": as computed.
        keep_every: of how many frames one is whole; None: as few as let 10,000 frames take a
            gigabyte, with a warning where that is not all of them.
        leading: how many leading entries of each array are kept; None for all.

    The folder is this recorder's until it is closed, see `run.lock`: another one, of
    this or another process, is refused. What a killed process has left is taken over with a
    warning.

    Raises:
        ValueError: another writer has the folder, it holds something that this class did not write,
            or another dtype.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> with sk.Recorder("runs/recorder") as recorder:
        ...     frame = sk.SpectralMonitor(model, every=1, recorder=recorder).step(0)
        >>> sk.load_run("runs/recorder").steps
        array([0])
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        resume_from: int | None = None,
        vectors: str = "float16",
        precision: Literal["half", "full"] = "half",
        keep_every: int | None = None,
        leading: int | None = None,
    ) -> None:
        if precision not in ("half", "full"):
            raise ValueError(f"precision: expected 'half' or 'full', got {precision!r}")
        for name, count in (("keep_every", keep_every), ("leading", leading)):
            if count is not None and (isinstance(count, bool) or count != int(count) or count < 1):
                raise ValueError(
                    f"{name}: expected a whole number of at least 1 or None, got {count!r}"
                )
        self.precision, self.keep_every, self.leading = precision, keep_every, leading
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(self.run_dir)
        try:
            self._open(resume_from, vectors)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, resume_from: int | None, vectors: str) -> None:
        self.last_step, self._written = repair(self.run_dir, resume_from)
        self.vector_dtype = vectors
        self._vectors = VectorWriter(self.run_dir, vectors)
        self._layout = read_layout(self.run_dir / LAYOUT, *VERSIONS)
        if self.keep_every is None and self._layout is not None:
            self.keep_every = self._layout.get("keep_every")
        self._columns: list[tuple[str, Any, int]] = []
        # Where the arrays of the last frame were: mostly the same objects at every step.
        self._seen: list[Any] = []
        self._lines = MetricLines(half=self.precision == "half")
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
        groups = groups_of(frame, self.leading)
        self._check(frame, groups)
        whole = self._written % (self.keep_every or 1) == 0
        line = (self._lines.line(frame) if whole else self._lines.short(frame)) + "\n"
        if whole:
            record = self._filled(frame.step, [views.block for _, views in groups])
            if frame.vectors:
                self._vectors.write(frame.step, frame.vectors)
            append(self._arrays, record)
        append(self._metrics, line.encode())
        self.last_step = frame.step
        self._written += 1
        if self.keep_every is None:
            self._choose(len(line) + self._record.nbytes + self._vectors.record_bytes)

    def _choose(self, size: int) -> None:
        """How many frames of this size are kept, where nobody has said."""
        self.keep_every = _fitting(size)
        assert self._layout is not None
        # For who goes on with this folder.
        self._layout["keep_every"] = self.keep_every
        write_atomically(self.run_dir / LAYOUT, json.dumps(self._layout, indent=1).encode())
        if self.keep_every > 1:
            warnings.warn(
                f"{self.run_dir}: a frame takes {format_bytes(size)}, ten thousand would take "
                f"{format_bytes(10_000 * size)}: every {self.keep_every}th is kept whole, of the "
                "others the scalars; Recorder(keep_every=...) sets it, leading=... keeps fewer "
                "entries of each array",
                stacklevel=6,
            )

    def expected(
        self, lengths: Mapping[str, int], pairs: Mapping[str, int], compared: int, vectors: int
    ) -> str:
        """The bytes that a monitor will write, as text, before the first frame.

        Args:
            lengths: matrix -> how many singular values.
            pairs: how they are called -> entries of their alignment.
            compared: entries of an agreement at most.
            vectors: bytes of saved vectors of one frame.
        """
        arrays = [(2, n) for n in lengths.values()] + [(1, n) for n in pairs.values()]
        arrays += [(3, min(compared, n)) for n in lengths.values()]
        entries = sum(count * min(n, self.leading or n) for count, n in arrays)
        text = sum(15 * (len(name) + 33) for name in lengths) + sum(len(p) + 36 for p in pairs)
        size = text + (2 if self.precision == "half" else 4) * entries + vectors
        kept = self.keep_every or _fitting(size)
        frames = "every frame"
        if kept > 1:
            frames = f"every {kept}th frame (keep_every), the scalars of all"
        return (
            f"recorded in {self.run_dir}: about {format_bytes(size)} for {frames}, "
            f"{format_bytes(10_000 * size // kept)} for 10,000 frames"
        )

    def _filled(self, step: int, blocks: list[Array]) -> Array:
        """The record of a frame, in the same memory each time."""
        record = self._record
        record["step"] = step
        if self._half is None:
            np.concatenate(blocks, out=record["values"][0], casting="same_kind")
        else:
            record["scales"], record["codes"] = self._half.encode(np.concatenate(blocks))
        return record

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

    def _check(self, frame: SpectralFrame, groups: list[tuple[str, JoinedArrays[Any]]]) -> None:
        """Raise ValueError where a frame has other columns than those of the folder."""
        places = [views.slices for _, views in groups]
        if len(places) == len(self._seen) and all(map(is_, places, self._seen)):
            return
        columns = columns_of(groups)
        if not self._columns:
            self._start(columns, groups, frame)
        if columns != self._columns:
            raise ValueError(
                f"{self.run_dir}: the frame of step {frame.step} has other matrices, pairs or "
                "lengths than those recorded before; choose another folder"
            )
        self._seen = places

    def _start(
        self,
        columns: list[tuple[str, Any, int]],
        groups: list[tuple[str, JoinedArrays[Any]]],
        frame: SpectralFrame,
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
            "version": VERSIONS[-1],
            "precision": self.precision,
            "dtype": kind,
            "reference": frame.reference,
            "chance": frame.chance.to_json(),
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
        # A folder goes on as it was begun.
        is_half = self._layout.get("precision", "full") == "half"
        self._half = half_precision(self._columns, self._layout["dtype"]) if is_half else None


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


def _fitting(size: int) -> int:
    """Of how many frames of this size one can be whole."""
    return max(1, math.ceil(size / _BYTES_PER_FRAME))
