"""Adapter to the compiled kernels: one call for a ragged list of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.compiled_arguments import matrix_argument
from spectral_kernels.numerics import DTYPE_CODES, result_dtype
from spectral_kernels.results import SVD
from spectral_kernels.tracking import torch_backend
from spectral_kernels.tracking.state import NOT_FINITE, WORK, State, Tracked


def track(matrices: list[Tensor], states: list[State], tolerance: float) -> list[Tracked]:
    """Return the factors of each batch (B, m, n); its state is overwritten with the new one."""
    results: list[Tracked] = []
    jobs: list[tuple[int | float, ...]] = []
    owners = []
    reports = []
    for A, state in zip(matrices, states, strict=True):
        batch, m, n = A.shape
        if not _C.track_supported(DTYPE_CODES[A.dtype], m, n):
            results += torch_backend.track([A], [state], tolerance)
            continue
        r = min(m, n)
        dtype = result_dtype(A.dtype)
        Ut = torch.empty(batch, r, m, dtype=dtype)
        S = torch.empty(batch, r, dtype=dtype)
        Vh = torch.empty(batch, r, n, dtype=dtype)
        bounds = torch.empty(batch, r, dtype=torch.float64)
        identities = torch.empty(batch, r, dtype=torch.int64)
        report = torch.empty(batch, 2, dtype=torch.float64)
        tracked = Tracked(SVD(Ut.mT, S, Vh), bounds, report[:, 1], identities, [])
        results.append(tracked)
        reports.append((report, state, tracked.work))
        argument, owner = matrix_argument(A)
        owners.append(owner)
        arrays = (state.drift, state.names, Ut, S, Vh, bounds, identities, report)
        jobs += _jobs(argument, A.element_size(), state, tolerance, arrays)
    if jobs:
        _C.track(jobs, torch.get_num_threads())
    for report, state, work in reports:
        for i, code in enumerate(report[:, 0].tolist()):
            work.append(WORK[int(code)] if code >= 0 else NOT_FINITE)
            state.warm[i] = state.warm[i] or code >= 0
    return results


def _jobs(
    matrix: tuple[int, ...], size: int, state: State, tolerance: float, arrays: tuple[Tensor, ...]
) -> list[tuple[int | float, ...]]:
    """Return one job per matrix of a batch.

    Addresses come by arithmetic: a tensor for every matrix of a batch costs more than its job.
    """
    start, code, _, m, n, step, row, column = matrix
    v = state.vectors
    single = int(v.dtype == torch.float32)
    places = [(x.data_ptr(), x.stride(0) * x.element_size()) for x in arrays]
    first, each = v.data_ptr(), v.stride(0) * v.element_size()
    jobs = []
    for i, warm in enumerate(state.warm):
        argument = (start + i * step * size, code, 1, m, n, 0, row, column)
        rest = [place + i * stride for place, stride in places]
        jobs.append((*argument, first + i * each, single, int(warm), tolerance, *rest))
    return jobs
