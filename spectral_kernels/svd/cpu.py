"""Adapter to the compiled kernels: one call for a ragged list of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.memory import matrix_argument
from spectral_kernels.runtime.numerics import DTYPE_CODES, result_dtype
from spectral_kernels.runtime.schemas import new_triplets
from spectral_kernels.svd import torch_backend


def svdvals(matrices: list[Tensor]) -> list[Tensor]:
    """Return the singular values (..., r) of each matrix (..., m, n)."""
    values: list[Tensor] = []
    jobs = []
    owners = []
    for A in matrices:
        *batch, m, n = A.shape
        if not _C.svdvals_supported(DTYPE_CODES[A.dtype], m, n):
            values += torch_backend.svdvals([A])
            continue
        # Sizes one by one: torch parses them in two thirds of the time of a tuple.
        S = torch.empty(*batch, min(m, n), dtype=result_dtype(A.dtype))
        values.append(S)
        if A.numel():
            argument, owner = matrix_argument(A)
            owners.append(owner)
            jobs.append((*argument, S.data_ptr()))
    if jobs:
        _C.svdvals(jobs, torch.get_num_threads())
    return values


def svd(matrices: list[Tensor]) -> list[SVD]:
    """Return the thin SVD of each matrix (..., m, n)."""
    results: list[SVD] = []
    jobs = []
    owners = []
    for A in matrices:
        m, n = A.shape[-2:]
        if not _C.svd_supported(DTYPE_CODES[A.dtype], m, n):
            results += torch_backend.svd([A])
            continue
        U, S, Vh = new_triplets(A, min(m, n))
        results.append(SVD(U, S, Vh))
        if A.numel():
            argument, owner = matrix_argument(A)
            owners.append(owner)
            jobs.append((*argument, U.data_ptr(), S.data_ptr(), Vh.data_ptr()))
    if jobs:
        _C.svd(jobs, torch.get_num_threads())
    return results


def svd_waits(m: int, n: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ``svd`` of (m, n) matrices makes the host wait for a device: never."""
    return False
