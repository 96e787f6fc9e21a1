"""The "python version" of CIFAR-10 (Krizhevsky 2009): pickled dicts, read without running them.

A pickle can name any function to be called. These need a few of NumPy's, so no other is found.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10_TEST = "test_batch"

_SHAPE = (3, 32, 32)


def cifar10_folder(folder: Path) -> Path:
    """``folder``, or ``cifar-10-batches-py`` in it, whichever has all batches.

    Raises ``ValueError`` that names the first missing file.
    """
    inside = folder / CIFAR10_FOLDER if (folder / CIFAR10_FOLDER).is_dir() else folder
    for name in (*CIFAR10_TRAIN, CIFAR10_TEST):
        if not (inside / name).is_file():
            raise ValueError(
                f"{inside / name} is missing; expected --data to be a folder with the files "
                f"{', '.join(CIFAR10_TRAIN)} and {CIFAR10_TEST} of CIFAR-10's python version"
            )
    return inside


def read_cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (count, 3, 32, 32) and labels int64 (count,) of one file.

    Raises ``ValueError`` for a file that holds anything else.
    """
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, *_SHAPE)
        labels = np.asarray(batch[b"labels"], dtype=np.int64).reshape(len(pixels))
    except Exception as error:  # unpickling a file that is no pickle raises whatever it likes
        raise ValueError(
            f"{path} is no batch of CIFAR-10 ({error}); expected a pickled dict with data, "
            "uint8 (count, 3072), and labels"
        ) from error
    return torch.from_numpy(pixels.copy()), torch.from_numpy(labels)


class _ArraysOnly(pickle.Unpickler):
    """Finds what NumPy arrays are unpickled with, under the module's old or new name."""

    _ALLOWED = frozenset(
        {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 moved numpy.core, where these files look, and warns about the old name.
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no array needs")
        return super().find_class(module, name)
