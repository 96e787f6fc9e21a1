"""Adapter to the compiled kernels: copies and statistics of all matrices in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.runtime.memory import is_view, matrix_argument
from spectral_kernels.runtime.numerics import result_dtype


def snapshot(matrices: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return packed copies of the matrices and the float64 statistics (count, 3)."""
    prepared = Copies(matrices)
    prepared.run()
    return prepared.copies, prepared.statistics


class Copies:
    """Copies and statistics of matrices that stay where they are, in memory that stays."""

    def __init__(self, matrices: list[Tensor]) -> None:
        counts = [A.shape[:-2].numel() for A in matrices]
        self.copies = [torch.empty(A.shape, dtype=result_dtype(A.dtype)) for A in matrices]
        # What an empty matrix keeps.
        self.statistics = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).repeat(sum(counts), 1)
        self._jobs = []
        self._sources = []
        address = self.statistics.data_ptr()
        for A, copy, count in zip(matrices, self.copies, counts, strict=True):
            if A.numel():
                argument, owner = matrix_argument(A)
                self._sources.append((A, owner))
                self._jobs.append((*argument, copy.data_ptr(), address))
            address += 24 * count

    def run(self) -> None:
        """Copy the matrices as they are now."""
        for A, owner in self._sources:
            # Batches without a single stride are read from a copy of their own.
            if not is_view(owner, A):
                owner.copy_(A.reshape(owner.shape))
        if self._jobs:
            _C.snapshot(self._jobs, torch.get_num_threads())
