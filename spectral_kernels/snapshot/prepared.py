"""Packed copies of the same matrices again and again, prepared once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_kernels.numerics import result_dtype
from spectral_kernels.results import Snapshot
from spectral_kernels.snapshot.op import snapshot_list


class PreparedSnapshot:
    """``snapshot_list`` of matrices that lie where they lie now, into the same memory each time.

    Args:
        matrices: tensors (..., m, n) on one device, any strides; at least one.
    """

    def __init__(self, matrices: list[Tensor]) -> None:
        self._matrices = matrices
        self._places = [_place(A) for A in matrices]
        copies = [
            torch.zeros(A.shape, dtype=result_dtype(A.dtype), device=A.device) for A in matrices
        ]
        count = sum(A.shape[:-2].numel() for A in matrices)
        self._statistics = copies[0].new_zeros((3, count), dtype=torch.float64)
        self._found = Snapshot(copies, *self._statistics)

    def fits(self, matrices: list[Tensor]) -> bool:
        """Whether these lie where the ones lie that this was made of."""
        return self._places == [_place(A) for A in matrices]

    def run(self) -> Snapshot:
        """Return the snapshot of now; the one before is overwritten."""
        found = snapshot_list(self._matrices)
        for kept, copy in zip(self._found.matrices, found.matrices, strict=True):
            kept.copy_(copy)
        self._statistics.copy_(torch.stack(found[1:]))
        return self._found


def _place(A: Tensor) -> tuple[Any, ...]:
    return A.data_ptr(), A.dtype, A.shape, A.stride(), A.device
