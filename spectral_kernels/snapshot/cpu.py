"""Adapter to the compiled kernels: copies and statistics of all matrices in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.compiled_arguments import matrix_argument
from spectral_kernels.numerics import result_dtype


def snapshot(matrices: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return packed copies of the matrices and the float64 statistics (count, 3)."""
    counts = [A.shape[:-2].numel() for A in matrices]
    statistics = torch.empty((sum(counts), 3), dtype=torch.float64)
    address = statistics.data_ptr()
    copies = []
    jobs = []
    owners = []
    row = 0
    for A, count in zip(matrices, counts, strict=True):
        copy = torch.empty(A.shape, dtype=result_dtype(A.dtype))
        copies.append(copy)
        if A.numel():
            argument, owner = matrix_argument(A)
            owners.append(owner)
            jobs.append((*argument, copy.data_ptr(), address + 24 * row))
        else:
            statistics[row : row + count] = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        row += count
    if jobs:
        _C.snapshot(jobs, torch.get_num_threads())
    return copies, statistics
