"""Singular values on CUDA, with their summaries: which kernel, on what, in how many launches.

Matrices of one shape and type go in one launch, a block for each, wherever they lie. By size:

- what fits shared memory as it is: bidiagonalised there (csrc/cuda/bidiagonal.cu);
- float32 and less with a longer side: Gram matrix of the short side in float64, whose tridiagonal
  form fits (csrc/cuda/gram_values.cu);
- float64 with a longer side: R of its QR, where that fits;
- beyond: ``svd.larger`` for float32, ``torch.linalg`` for float64.

The kernels write the table of ranks and norms themselves, so a summary is no launch more.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.results import METRICS
from spectral_kernels.products.gram import gram
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.runtime.cuda.table import VALUES_JOBS
from spectral_kernels.runtime.memory import flattened
from spectral_kernels.runtime.numerics import DTYPE_CODES, default_rtol, result_dtype
from spectral_kernels.svd import larger, torch_backend
from spectral_kernels.svd.cuda_values_plan import Plan, plan
from spectral_kernels.svd.cuda_vectors import by_shape


def svdvals(matrices: list[Tensor]) -> list[Tensor]:
    """Return the singular values (..., r) of each matrix (..., m, n)."""
    values, _ = _solve(matrices, None)
    return values


def svdvals_with_tables(matrices: list[Tensor], rtol: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return the singular values and the float64 table (..., 7) of each matrix (..., m, n).

    Columns and ``rtol`` are those of the rank backends' ``summary_tables``.
    """
    values, tables = _solve(matrices, rtol)
    return values, [table for table in tables if table is not None]


class _Job(NamedTuple):
    """A batch of matrices as the kernels' struct has it; see csrc/cuda/values.cuh."""

    a: Tensor
    values: Tensor
    table: Tensor | None
    matrices: int
    stride_batch: int
    stride_rows: int
    stride_n: int


_NONE = (None, None, None, 0, 0, 0, 0)


def _solve(matrices: list[Tensor], rtol: float | None) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return values and, where a threshold is given, tables."""
    values, tables = [], []
    for A in matrices:
        *batch, m, n = A.shape
        S = A.new_empty((*batch, min(m, n)), dtype=result_dtype(A.dtype))
        table = A.new_empty((*batch, len(METRICS)), dtype=torch.float64)
        values.append(S)
        tables.append(None if rtol is None else table)
        if not A.numel():
            table.zero_()
    groups = by_shape(matrices)
    limit = launcher.limits(matrices[0].device).shared_bytes if groups else 0
    for (dtype, m, n), group in groups.items():
        launch_plan = plan(dtype, m, n, limit)
        if launch_plan is None:
            for i in group:
                values[i], tables[i] = _by_torch(matrices[i], rtol)
            continue
        threshold = default_rtol(m, n, result_dtype(dtype)) if rtol is None or rtol < 0 else rtol
        batches = _given(launch_plan, [flattened(matrices[i]) for i in group])
        jobs = [_job(A, values[i], tables[i]) for A, i in zip(batches, group, strict=True)]
        _launch(launch_plan, jobs, threshold)
    return values, tables


def _by_torch(A: Tensor, rtol: float | None) -> tuple[Tensor, Tensor | None]:
    if A.dtype == torch.float64:
        (S,) = torch_backend.svdvals([A])
    else:
        S = larger.svdvals(A)
    if rtol is None:
        return S, None
    ranks = dispatch.backend("rank", S.device.type)
    (table,) = ranks.summary_tables([S], [(A.shape[-2], A.shape[-1])], rtol)
    return S, table


def _given(launch_plan: Plan, batches: list[Tensor]) -> list[Tensor]:
    """Return what the kernel works on, for each batch (B, m, n)."""
    if launch_plan.given == "matrix":
        return batches
    A = batches[0] if len(batches) == 1 else torch.cat(batches)
    if launch_plan.given == "gram":
        made = gram(A)
    else:
        made = torch.linalg.qr(A if A.shape[-2] >= A.shape[-1] else A.mT, mode="r").R
    return list(torch.split(made, [len(x) for x in batches]))


def _job(A: Tensor, S: Tensor, table: Tensor | None) -> _Job:
    count, m, n = A.shape
    stride_batch, stride_m, stride_n = A.stride()
    strides = (stride_m, stride_n) if m >= n else (stride_n, stride_m)
    return _Job(A, S, table, count, stride_batch, *strides)


def _launch(launch_plan: Plan, jobs: list[_Job], rtol: float) -> None:
    """Launch for matrices of one shape and type, 40 batches at a time."""
    A = jobs[0].a
    common = (DTYPE_CODES[A.dtype], max(A.shape[1:]), min(A.shape[1:]), rtol)
    for i in range(0, len(jobs), VALUES_JOBS):
        part = jobs[i : i + VALUES_JOBS]
        rows = [*part, *[_NONE] * (VALUES_JOBS - len(part))]
        grid = sum(job.matrices for job in part)
        launcher.launch(
            launch_plan.kernel, grid, launch_plan.threads, launch_plan.shared_bytes,
            len(part), *common, *chain.from_iterable(rows),
        )  # fmt: skip
