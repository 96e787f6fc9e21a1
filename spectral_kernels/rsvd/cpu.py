"""Adapter to the compiled kernels: one call for a ragged list of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.memory import matrix_argument
from spectral_kernels.runtime.numerics import result_dtype


def rsvd(
    matrices: list[Tensor],
    starts: list[Tensor],
    ks: list[int],
    widths: list[int],
    seed: Tensor,
    power_iters: int,
) -> list[SVD]:
    """Return k leading triplets of each matrix (..., m, n).

    The start block (..., n, width) has the columns of the one given, then random ones.
    """
    number = int(seed)
    results = []
    jobs = []
    owners = []
    entries = zip(matrices, starts, ks, widths, strict=True)
    for index, (A, start, k, width) in enumerate(entries):
        *batch, m, n = A.shape
        dtype = result_dtype(A.dtype)
        Ut = torch.empty(*batch, k, m, dtype=dtype)
        S = torch.empty(*batch, k, dtype=dtype)
        Vh = torch.empty(*batch, k, n, dtype=dtype)
        results.append(SVD(Ut.mT, S, Vh))
        if A.numel():
            argument, owner = matrix_argument(A)
            columns = start.to(dtype).contiguous()
            owners += [owner, columns]
            block = (columns.data_ptr(), columns.shape[-1], number, index)
            outputs = (Ut.data_ptr(), S.data_ptr(), Vh.data_ptr())
            jobs.append((*argument, *block, k, width, power_iters, *outputs))
    if jobs:
        _C.rsvd(jobs, torch.get_num_threads())
    return results
