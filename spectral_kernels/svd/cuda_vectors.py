"""Singular vectors on CUDA: a launch of one-sided Jacobi for each shape and type.

A matrix whose long side does not fit the shared memory of a block is made square by Householder's
A = Q R first; one whose short side does not fit goes to ``svd.larger`` (float32) or plain torch
(float64). Nothing here waits for the device but torch's own solvers for what is too large.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import numerics
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.runtime.cuda.table import SVD_JOBS
from spectral_kernels.runtime.memory import flattened
from spectral_kernels.runtime.numerics import DTYPE_CODES, result_dtype
from spectral_kernels.runtime.schemas import new_triplets
from spectral_kernels.svd import larger, torch_backend
from spectral_kernels.svd.jacobi_plan import Plan, values_plan, vectors_plan


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
    limit = launcher.limits(matrices[0].device).shared_bytes if matrices else 0
    results: dict[int, SVD] = {}
    for (dtype, m, n), group in by_shape(matrices).items():
        plan = vectors_plan(m, n, result_dtype(dtype), limit)
        if plan is None:
            results |= {i: _beyond(matrices[i], limit) for i in group}
        else:
            results |= {i: SVD(*new_triplets(matrices[i], min(m, n))) for i in group}
            _launch(plan, dtype, m, n, [_job(matrices[i], *results[i]) for i in group])
    return [
        results[i] if i in results else SVD(*new_triplets(A, min(A.shape[-2:])))
        for i, A in enumerate(matrices)
    ]


def svdvals(matrices: list[Tensor]) -> list[Tensor]:
    """Return the singular values (..., r) of each matrix, no side beyond ``VALUES_SIDE``."""
    values = [
        A.new_empty((*A.shape[:-2], min(A.shape[-2:])), dtype=result_dtype(A.dtype))
        for A in matrices
    ]
    for (dtype, m, n), group in by_shape(matrices).items():
        jobs = [_job(matrices[i], None, values[i], None) for i in group]
        _launch(values_plan(m, n, result_dtype(dtype)), dtype, m, n, jobs)
    return values


def by_shape(matrices: list[Tensor]) -> dict[tuple[torch.dtype, int, int], list[int]]:
    """Return the indices of the matrices of each type and shape, of those that are not empty."""
    groups: dict[tuple[torch.dtype, int, int], list[int]] = {}
    for i, A in enumerate(matrices):
        if A.numel():
            groups.setdefault((A.dtype, A.shape[-2], A.shape[-1]), []).append(i)
    return groups


def _job(A: Tensor, U: Tensor | None, S: Tensor, Vh: Tensor | None) -> _Job:
    A = flattened(A)
    return _Job(A, None if U is None else U.mT, S, Vh, A.shape[0], *A.stride())


def _launch(plan: Plan, dtype: torch.dtype, m: int, n: int, jobs: list[_Job]) -> None:
    for i in range(0, len(jobs), SVD_JOBS):
        part = jobs[i : i + SVD_JOBS]
        rows = [*part, *[_NONE] * (SVD_JOBS - len(part))]
        grid = -(-sum(job.batch for job in part) // plan.matrices_per_block)
        launcher.launch(
            plan.kernel, grid, plan.threads, plan.shared_bytes,
            DTYPE_CODES[dtype], m, n, len(part), *chain.from_iterable(rows), *plan.leading,
        )  # fmt: skip


def _beyond(A: Tensor, limit: int) -> SVD:
    """Return the SVD of matrices (..., m, n) that do not fit as they are, none of them empty."""
    r, dtype = min(A.shape[-2:]), result_dtype(A.dtype)
    if vectors_plan(r, r, dtype, limit) is not None:
        return _triangle_first(A.to(dtype))
    if dtype == torch.float32:
        return larger.svd(A)
    return torch_backend.svd([A])[0]


def _triangle_first(A: Tensor) -> SVD:
    """Return the SVD from that of R, X = Q R, where X is A or A^T, whichever is tall."""
    tall = A.shape[-2] >= A.shape[-1]
    X = A if tall else A.mT
    exponent = torch.frexp(torch.linalg.vector_norm(X, float("inf"), dim=(-2, -1))).exponent
    # The squares in Householder's norms neither overflow nor vanish.
    Q, R = torch.linalg.qr(numerics.scale(X, -exponent[..., None, None]))
    (inner,) = svd([R])
    # In float64, because float32 products may be TF32 where the caller has asked torch for it.
    long_side = (Q.double() @ inner.U.double()).to(A.dtype)
    U, Vh = (long_side, inner.Vh) if tall else (inner.Vh.mT, long_side.mT)
    U, Vh = numerics.fix_signs(U, Vh)
    S = numerics.scale(inner.S, exponent[..., None])
    return SVD(numerics.by_columns(U), S, Vh.contiguous())
