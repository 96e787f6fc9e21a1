"""CuPy arrays through DLPack: the only file that imports CuPy."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import dlpack


def from_cupy(x: Any) -> Tensor:
    """Return a CUDA tensor that shares the memory of the CuPy array ``x``."""
    tensor: Tensor = dlpack.from_dlpack(x)
    return tensor


def to_cupy(tensor: Tensor) -> Any:
    """Return a CuPy array that shares the memory of the CUDA tensor ``tensor``."""
    import cupy

    return cupy.from_dlpack(tensor)
