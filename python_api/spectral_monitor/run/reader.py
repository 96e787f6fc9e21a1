"""A recorded run, read back as arrays over time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from spectral_monitor.run.folder import ARRAYS, LAYOUT, METRICS_FILE, record_type
from spectral_monitor.run.half_precision import Decoded
from spectral_monitor.run.saved_vectors import FINAL_AGREEMENT, FINAL_GROUPS, SavedVectors
from spectral_monitor.step.chance import Chance
from spectral_monitor.step.frame import Array
from spectral_monitor.step.reference import MODES, Given, Recorded

from spectral_kernels.entry.results import METRICS
from spectral_kernels.runtime.limits import VALUE_ROUNDING

_PREFIXES = frozenset(
    (*METRICS, "normalized_effective_rank", "alignment_score", "agreement_score",
     "bound")
)  # fmt: skip
_WORK = "work"


@dataclass(slots=True)
class Run:
    """Everything that was recorded, T frames in order of steps.

    Example:
        >>> run = sk.load_run("runs/first")
        >>> run.weights
        ['0.weight', '2.weight']
        >>> run.metrics["stable_rank"]["0.weight"].shape
        (5,)
        >>> run.bound("stable_rank", "0.weight").shape
        (5,)
    """

    path: Path
    steps: np.ndarray[Any, np.dtype[np.int64]]
    """(T,)"""
    scalars: dict[str, Array]
    """Name -> (T,): what the caller passed along, ``overhead`` and ``not_finite``."""
    metrics: dict[str, dict[str, Array]]
    """Metric -> matrix (or ``a -> b``) -> (T,)."""
    singular_values: Mapping[str, Array]
    """Matrix -> (T, r)."""
    alignment: Mapping[tuple[str, str], Array]
    """(name, next name) -> (T, k)."""
    agreement: Mapping[str, Array]
    """Matrix -> (T, k). With ``reference="final"`` it is there once
    `spectral_monitor.run.final_agreement.agreement_with_final` was called."""
    singular_value_bounds: Mapping[str, Array] = field(default_factory=dict)
    """Matrix -> (T, r); none of the exact method, see `value_bounds`."""
    subspace_agreement: Mapping[str, Array] = field(default_factory=dict)
    """Matrix -> (T, k), as ``agreement`` for the clusters that the indices are in."""
    identifiable: Mapping[str, Array] = field(default_factory=dict)
    """Matrix -> (T, k), 1.0 where single vectors mean something and 0.0 where not; with
    ``reference="final"`` against the last measured step, and once there is an ``agreement``,
    against the end."""
    overlap: Mapping[str, Array] = field(default_factory=dict)
    """``name[update]`` or ``name[gradient]`` -> (T, 2), left and right."""
    chance: Chance = field(default_factory=Chance)
    """What random directions would give."""
    reasons: dict[int, dict[str, str]] = field(default_factory=dict)
    """Step -> matrix -> why it has no numbers, see `step.frame.MatrixRow.reason`."""
    work: dict[str, Array] = field(default_factory=dict)
    """What a tracker did ("kept", "solved") -> (T,), to how many matrices."""
    config: dict[str, Any] = field(default_factory=dict)
    """``config.json`` of the folder, if there is one."""
    summary: dict[str, Any] = field(default_factory=dict)
    """``summary.json`` of the folder, if there is one."""

    @property
    def matrices(self) -> list[str]:
        """Names of the matrices in order."""
        return list(self.singular_values)

    @property
    def weights(self) -> list[str]:
        """Names of the matrices without the updates and gradients of others."""
        endings = ("[update]", "[gradient]")
        return [name for name in self.matrices if not name.endswith(endings)]

    def value_bounds(self, matrix: str) -> Array:
        """(T, r) bounds of the singular values, 8 eps sigma_1 where none are recorded; with what
        they were rounded by when they were recorded.

        Args:
            matrix: its name.
        """
        recorded = self.singular_value_bounds.get(matrix)
        if recorded is not None:
            return recorded
        values = self.singular_values[matrix]
        level = VALUE_ROUNDING * np.finfo(values.dtype).eps * values[:, :1]
        if isinstance(self.singular_values, Decoded):
            return np.asarray(level + self.singular_values.errors(matrix))
        return np.broadcast_to(level, values.shape)

    def normalized(self, matrix: str, values: Array) -> Array:
        """(T,) values divided by r, as the normalised effective rank is H / r.

        So r is known even where fewer singular values were computed; NaN where H is 0.

        Args:
            matrix: its name.
            values: (T,), such as bounds of its effective rank.
        """
        share, entropy = (
            self.metrics[name][matrix] for name in ("normalized_effective_rank", "effective_rank")
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(values * (share / entropy))

    def bound(self, metric: str, matrix: str) -> Array | None:
        """(T,) bounds of a metric; ``None`` where it is rounding, which is not recorded.

        Args:
            metric: its name, such as "effective_rank".
            matrix: the matrix's.
        """
        return self.metrics.get("bound", {}).get(f"{metric}/{matrix}")


def load_run(run_dir: str | os.PathLike[str]) -> Run:
    """Read a run folder, also one that is being written or whose writer was killed.

    Frames that were recorded short (see `run.recorder`) are left out. The arrays are views
    of a memory map of ``spectra.bin``, or decoded from it: nothing is read before it is used.

    Args:
        run_dir: the folder that a `Recorder` wrote.

    Raises:
        FileNotFoundError: the folder has no ``metrics.jsonl``.

    Example:
        >>> run = sk.load_run("runs/first")
        >>> run.steps
        array([0, 1, 2, 3, 4])
        >>> run.singular_values["0.weight"].shape
        (5, 16)
    """
    path = Path(run_dir)
    rows = _read_lines(path / METRICS_FILE)
    # A frame is complete when both files have it; the two agree but for a torn end.
    steps = np.array([row["step"] for row in rows], dtype=np.int64)
    records, layout = _read_arrays(path)
    columns = layout.get("columns", [])
    is_whole = np.isin(steps, records["step"]) if columns else np.ones(len(steps), dtype=bool)
    rows = [row for row, is_known in zip(rows, is_whole, strict=True) if is_known]
    steps = steps[is_whole]
    # The writer is append-only and in order: the metrics are a prefix of the arrays.
    count = len(steps)
    reasons = {row["step"]: row.pop("reasons") for row in rows if "reasons" in row}
    scalars, metrics = _by_key(rows)
    run = Run(path, steps, scalars, metrics, {}, {}, {}, work=_take_work(scalars),
              chance=Chance.from_json(layout.get("chance", {})), reasons=reasons,
              config=_read_json(path / "config.json"),
              summary=_read_json(path / "summary.json"))  # fmt: skip
    for group, arrays in _groups(records[:count] if columns else None, layout).items():
        setattr(run, group, arrays)
    if not run.agreement:
        run.agreement, run.subspace_agreement, identifiable = _read_final_agreement(path, steps)
        run.identifiable = identifiable or run.identifiable
    return run


def _groups(records: Any, layout: dict[str, Any]) -> dict[str, Mapping[Any, Array]]:
    """Group -> name -> (T, length)."""
    places: dict[str, dict[Any, tuple[int, slice]]] = {}
    start = 0
    for i, column in enumerate(layout.get("columns", [])):
        name = column["name"]
        key = tuple(name) if isinstance(name, list) else name
        stop = start + column["length"]
        places.setdefault(column["group"], {})[key] = (i, slice(start, stop))
        start = stop
    if layout.get("precision", "full") == "half":
        codes, scales = records["codes"], records["scales"]
        return {g: Decoded(codes, scales, own, layout["dtype"]) for g, own in places.items()}
    return {
        g: {name: records["values"][:, place] for name, (_, place) in own.items()}
        for g, own in places.items()
    }


def with_recorded_run(reference: Given) -> Given:
    """The option ``reference`` of a monitor, with the folder of a run as that run's last step.

    Raises:
        ValueError: no vectors are saved there, or no singular values of the same step.
    """
    if not isinstance(reference, str | os.PathLike) or reference in MODES:
        return reference
    folder = Path(reference)
    try:
        saved = SavedVectors(folder)
    except FileNotFoundError as error:
        modes = ", ".join(map(repr, MODES))
        raise ValueError(
            f"reference: expected {modes}, the folder of a run, SVDs or None; {error}"
        ) from error
    step, spectra = recorded_spectra(folder, saved.steps)
    vectors = saved.read(int(np.flatnonzero(saved.steps == step)[0]))
    return Recorded(vectors, spectra, f"step {step} of {folder.as_posix()}")


def recorded_spectra(
    run_dir: Path, steps: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[int, dict[str, tuple[Array, Array]]]:
    """The last of these steps whose values are recorded too, and values and bounds by matrix.

    A writer saves vectors first, so that a kill may leave them one step ahead of the values.

    Raises:
        ValueError: the values of none of these steps are recorded.
    """
    run = load_run(run_dir)
    both = np.flatnonzero(np.isin(run.steps, steps))
    if not len(both) or not run.singular_values:
        raise ValueError(
            f"{run_dir}: vectors are saved at {len(steps)} steps, singular values at none of these"
        )
    t = int(both[-1])
    return int(run.steps[t]), {
        name: (np.array(values[t]), np.array(run.value_bounds(name)[t]))
        for name, values in run.singular_values.items()
    }


def _read_final_agreement(
    path: Path, steps: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Agreement, that of subspaces, and which vectors are identifiable, by matrix at these steps.

    NaN at others; empty if there is no comparison with the end.
    """
    single: dict[str, Array] = {}
    whole: dict[str, Array] = {}
    identifiable: dict[str, Array] = {}
    if (path / FINAL_AGREEMENT).exists():
        with np.load(path / FINAL_AGREEMENT) as content:
            _, here, there = np.intersect1d(steps, content["steps"], return_indices=True)
            for i, name in enumerate(content["names"].tolist()):
                for kind, arrays in zip(FINAL_GROUPS, (single, whole, identifiable), strict=True):
                    # An older file has no flags.
                    if f"{kind}_{i}" in content:
                        values = content[f"{kind}_{i}"]
                        arrays[name] = np.full((len(steps), values.shape[1]), np.nan, np.float32)
                        arrays[name][here] = values[there]
    return single, whole, identifiable


def _take_work(scalars: dict[str, Array]) -> dict[str, Array]:
    """Move the counts of a tracker's work out of the scalars; what was not done is 0."""
    keys = [key for key in scalars if key.partition("/")[0] == _WORK and "/" in key]
    return {key.partition("/")[2]: np.nan_to_num(scalars.pop(key)) for key in keys}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with open(path, "rb") as file:
        return [json.loads(line) for line in file if line.endswith(b"\n")]


def _read_arrays(path: Path) -> tuple[Any, dict[str, Any]]:
    if not (path / LAYOUT).exists() or not (path / ARRAYS).exists():
        return None, {}
    layout = json.loads((path / LAYOUT).read_text())
    kind = record_type(layout)
    count = (path / ARRAYS).stat().st_size // kind.itemsize
    if not count:
        return np.zeros(0, dtype=kind), layout
    return np.memmap(path / ARRAYS, dtype=kind, mode="r", shape=(count,)), layout


def _by_key(
    rows: list[dict[str, Any]],
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    keys = dict.fromkeys(key for row in rows for key in row if key != "step")
    scalars: dict[str, Array] = {}
    metrics: dict[str, dict[str, Array]] = {}
    for key in keys:
        # None, a value that was not finite, becomes NaN under a float dtype.
        values = np.array([row.get(key) for row in rows], dtype=np.float64)
        metric, _, name = key.partition("/")
        if name and metric in _PREFIXES:
            metrics.setdefault(metric, {})[name] = values
        else:
            scalars[key] = values
    return scalars, metrics


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    return content if isinstance(content, dict) else {}
