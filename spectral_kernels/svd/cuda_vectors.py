"""Singular value decompositions with vectors on CUDA: a launch for each shape and type.

What fits the registers of a warp or the shared memory of a block is solved by one-sided Jacobi (see
``cuda_plan``). A matrix whose long side does not fit is made square by Householder's A = Q R first;
one whose short side does not fit goes to plain torch. Nothing here waits for the device, except
torch's own solver for what is too large.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels import numerics
from spectral_kernels.cuda import launcher
from spectral_kernels.cuda.table import SVD_JOBS
from spectral_kernels.numerics import DTYPE_CODES, result_dtype
from spectral_kernels.results import SVD
from spectral_kernels.svd import torch_backend
from spectral_kernels.svd.cuda_plan import RegistersPlan, SharedPlan, registers_plan, shared_plan


class _Job(NamedTuple):
    """A batch of matrices as the kernels' struct has it; see csrc/cuda/svd_jobs.cuh."""

    a: Tensor
    Ut: Tensor | None
    S: Tensor
    Vh: Tensor | None
    batch: int
    stride_b: int
    stride_m: int
    stride_n: int


_NONE = (None, None, None, None, 0, 0, 0, 0)


def svd(matrices: list[Tensor]) -> list[SVD]:
    """Return the thin SVD of each matrix (..., m, n)."""
    results = [_empty(A) for A in matrices]
    limit = launcher.limits().shared_bytes if matrices else 0
    for (dtype, m, n), group in _groups(matrices).items():
        computed = result_dtype(dtype)
        in_registers = registers_plan(m, n, computed) is not None
        if in_registers or shared_plan(m, n, computed, limit) is not None:
            _launch(dtype, m, n, limit, [_job(matrices[i], results[i]) for i in group])
            continue
        for i in group:
            results[i] = _beyond(matrices[i], limit)
    return results


def svdvals(matrices: list[Tensor]) -> list[Tensor]:
    """Return the singular values (..., r) of each matrix, both sides within ``VALUES_SIDE``."""
    values = [_empty_values(A) for A in matrices]
    for (dtype, m, n), group in _groups(matrices).items():
        jobs = [_job(matrices[i], SVD(None, values[i], None)) for i in group]
        _launch(dtype, m, n, 0, jobs)
    return values


def _groups(matrices: list[Tensor]) -> dict[tuple[torch.dtype, int, int], list[int]]:
    """Return the indices of the matrices that are not empty, by type and shape."""
    groups: dict[tuple[torch.dtype, int, int], list[int]] = {}
    for i, A in enumerate(matrices):
        if A.numel():
            groups.setdefault((A.dtype, A.shape[-2], A.shape[-1]), []).append(i)
    return groups
