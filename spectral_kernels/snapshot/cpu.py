"""Adapter to the compiled kernels: copies and statistics of all matrices in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.runtime.memory import is_view, matrix_argument


class Copies:
    """Fills the copies of matrices, and ``statistics`` (count, 3) float64 with what a pass tells.

    All of it stays where it is.
    """

    def __init__(self, matrices: list[Tensor], copies: list[Tensor]) -> None:
        counts = [A.shape[:-2].numel() for A in matrices]
        self._copies = copies
        # What an empty matrix keeps.
        self.statistics = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).repeat(sum(counts), 1)
        self._jobs = []
        self._sources = []
        address = self.statistics.data_ptr()
        for A, copy, count in zip(matrices, copies, counts, strict=True):
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
