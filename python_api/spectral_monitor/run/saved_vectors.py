"""Leading singular vectors of every recorded step, in the run folder.

``vectors.bin``
    Records of equal size: an int64 step, then for each matrix k left vectors (k, m) and k right
    vectors (k, n), little-endian. Written in one call each, so that a kill leaves at most a torn
    end, which is cut off when the folder is opened again.

``vectors.json``
    Name, shape and k of each matrix, and the dtype. float16 by default: entries of unit vectors
    are rounded by 2^-11 of themselves, a cosine of two by less than 1e-3, mostly far less, since
    the errors of the entries are independent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spectral_monitor.run.files import append, read_layout, write_atomically

from spectral_kernels.entry.results import SVD

VECTORS = "vectors.bin"
VECTOR_LAYOUT = "vectors.json"
# What `spectral_monitor.run.final_agreement` finds; gone as soon as the run goes on.
FINAL_AGREEMENT = "final_agreement.npz"
FINAL_GROUPS = ("agreement", "subspace_agreement", "identifiable")
_VERSION = 1
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class VectorWriter:
    """Appends the vectors of one step after the other.

    Args:
        run_dir: an existing folder; records in it are gone on after.
        dtype: "float16" or "float32".

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, run_dir: Path, dtype: str = "float16") -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"vectors: expected one of {', '.join(_DTYPES)}, got {dtype!r}")
        self._run_dir = run_dir
        self._dtype = dtype
        self._file: FileIO | None = None
        self._record_bytes = 0

    def write(self, step: int, vectors: Mapping[str, SVD]) -> None:
        """Append one step.

        Raises:
            ValueError: other matrices, shapes or numbers of vectors than the folder has.
        """
        if self._file is None:
            self._open(vectors)
        assert self._file is not None
        if _described(vectors) != self._matrices:
            raise ValueError(
                f"{self._run_dir}: the vectors of step {step} are of other matrices, shapes or "
                "numbers than those recorded before; choose another folder"
            )
        dtype = _DTYPES[self._dtype]
        sides = [x.to(dtype).reshape(-1) for svd in vectors.values() for x in (svd.U.mT, svd.Vh)]
        numbers = torch.cat(sides).cpu().numpy()
        data = step.to_bytes(8, "little", signed=True) + numbers.tobytes()
        append(self._file, data)
        self._record_bytes = len(data)

    @property
    def record_bytes(self) -> int:
        """Size of one record, 0 before the first."""
        return self._record_bytes

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, vectors: Mapping[str, SVD]) -> None:
        layout = read_layout(self._run_dir / VECTOR_LAYOUT, _VERSION)
        if layout is None:
            matrices = _described(vectors)
            layout = {"version": _VERSION, "dtype": self._dtype, "matrices": matrices}
            text = json.dumps(layout, indent=1)
            write_atomically(self._run_dir / VECTOR_LAYOUT, text.encode())
        self._dtype, self._matrices = layout["dtype"], layout["matrices"]
        (self._run_dir / FINAL_AGREEMENT).unlink(missing_ok=True)
        self._file = open(self._run_dir / VECTORS, "ab", buffering=0)  # noqa: SIM115


class SavedVectors:
    """Reads the vectors of a run folder, also one that is being written.

    Args:
        run_dir: the folder of a run with ``reference="final"``.

    Raises:
        FileNotFoundError: no vectors were saved there.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        path = Path(run_dir)
        layout = read_layout(path / VECTOR_LAYOUT, _VERSION)
        if layout is None or not (path / VECTORS).exists():
            raise FileNotFoundError(
                f"{path}: no {VECTORS}; a run keeps its vectors where its monitor has "
                "reference='final'"
            )
        self._shapes = {matrix["name"]: tuple(matrix["shape"]) for matrix in layout["matrices"]}
        kind = _record_type(layout)
        count = (path / VECTORS).stat().st_size // kind.itemsize
        self._records: Any = (
            np.memmap(path / VECTORS, dtype=kind, mode="r", shape=(count,))
            if count
            else np.zeros(0, dtype=kind)
        )
        self.steps = np.array(self._records["step"], dtype=np.int64)
        self.record_bytes = kind.itemsize

    @property
    def names(self) -> list[str]:
        """Names of the matrices, in order."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, int]:
        """(m, n) of a matrix."""
        m, n = self._shapes[name]
        return m, n

    def read(self, index: int) -> dict[str, SVD]:
        """U (m, k) and Vh (k, n) of every matrix at the index-th saved step, float32; S empty."""
        record, svds = self._records[index], {}
        for i, name in enumerate(self._shapes):
            Ut, Vh = (torch.from_numpy(record[f"{side}{i}"].astype(np.float32)) for side in "UV")
            svds[name] = SVD(Ut.mT, Ut.new_empty(0), Vh)
        return svds


def bytes_per_step(
    matrices: Sequence[tuple[tuple[int, int], int]], k: int, dtype: str | None
) -> int:
    """Size of one record for matrices of these shapes and ranks; 0 where none are saved."""
    if dtype is None:
        return 0
    size = _DTYPES[dtype].itemsize
    return 8 + size * sum(min(k, rank) * sum(shape) for shape, rank in matrices)


def truncate_vectors(run_dir: Path, last: int | None) -> None:
    """Cut off a torn end and the records of steps after ``last``; all where it is ``None``."""
    path = run_dir / VECTORS
    if last is None:
        for name in (VECTORS, VECTOR_LAYOUT, FINAL_AGREEMENT):
            (run_dir / name).unlink(missing_ok=True)
    elif path.exists():
        saved = SavedVectors(run_dir)
        os.truncate(path, int(np.count_nonzero(saved.steps <= last)) * saved.record_bytes)


def _described(vectors: Mapping[str, SVD]) -> list[dict[str, Any]]:
    """Name, shape and number of vectors of each matrix, as the layout has them."""
    return [
        {"name": name, "shape": [svd.U.shape[0], svd.Vh.shape[1]], "k": svd.Vh.shape[0]}
        for name, svd in vectors.items()
    ]


def _record_type(layout: Mapping[str, Any]) -> np.dtype[Any]:
    kind = {"float16": "<f2", "float32": "<f4"}[layout["dtype"]]
    fields: list[tuple[Any, ...]] = [("step", "<i8")]
    for i, matrix in enumerate(layout["matrices"]):
        (m, n), k = matrix["shape"], matrix["k"]
        fields += [(f"U{i}", kind, (k, m)), (f"V{i}", kind, (k, n))]
    return np.dtype(fields)
