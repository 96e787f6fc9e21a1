"""Adapter to the compiled kernels: one call for a ragged list of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.memory import matrix_argument
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.tracking.leading.state import (
    WORK,
    Block,
    Randomness,
    Schedule,
    WaitingUpdates,
)
from spectral_kernels.tracking.results import Tracked, Updates, Work


def track(
    matrices: list[Tensor],
    blocks: list[Block],
    ks: list[int],
    random: list[Randomness],
    tolerance: float,
) -> list[Tracked]:
    """Return k triplets of each batch (B, m, n); its block is overwritten with the new one."""
    results = []
    jobs = []
    owners = []
    reports = []
    for A, block, k, columns in zip(matrices, blocks, ks, random, strict=True):
        batch, m, n = A.shape
        width = block.vectors.shape[-1]
        dtype = result_dtype(A.dtype)
        Ut = torch.empty(batch, k, m, dtype=dtype)
        S = torch.empty(batch, k, dtype=dtype)
        Vh = torch.empty(batch, k, n, dtype=dtype)
        bounds = torch.empty(batch, k, dtype=torch.float64)
        residuals = torch.empty(batch, k, dtype=torch.float64)
        report = torch.empty(batch, 5, dtype=torch.float64)
        results.append((SVD(Ut.mT, S, Vh), bounds, residuals))
        reports.append(report)
        places = [
            (x.data_ptr(), x.stride(0) * x.element_size())
            for x in (block.vectors, block.identities, Ut, S, Vh, bounds, residuals, report)
        ]
        (start, code, *_, step, row, column), owner = matrix_argument(A)
        owners.append(owner)
        step *= A.element_size()
        for i, warm in enumerate(block.warm):
            v, numbers, ut, s, vh, radii, left, verdict = (
                place + i * size for place, size in places
            )
            argument = (start + i * step, code, 1, m, n, 0, row, column)
            given = (v, columns.start.data_ptr(), columns.fresh.data_ptr(), columns.fresh.shape[1])
            outputs = (numbers, ut, s, vh, radii, left, verdict)
            jobs.append((*argument, k, width, int(warm), tolerance, *given, *outputs))
    _C.leading(jobs, torch.get_num_threads())
    return [
        _finish(solved, report, block, k)
        for solved, report, block, k in zip(results, reports, blocks, ks, strict=True)
    ]


def _finish(solved: tuple[SVD, Tensor, Tensor], report: Tensor, block: Block, k: int) -> Tracked:
    svd, bounds, residuals = solved
    identities = block.identities[:, :k].clone()
    codes = []
    for i, (code, _, zero, _, _) in enumerate(report.tolist()):
        codes.append(int(code))
        if code < 0:
            identities[i] = -1
        block.warm[i] = block.warm[i] or (code >= 0 and zero == 0)
    errors, norms = report[:, 3].clone(), report[:, 4].clone()
    work = Work.of(codes, WORK, torch.device("cpu"))
    return Tracked(svd, bounds, errors, identities, work, residuals, norms)


def prepare(
    matrices: list[Tensor],
    blocks: list[Block],
    ks: list[int],
    schedule: Schedule,
    tolerance: float,
) -> Updates:
    """Return the updates of matrices that lie where they lie now."""
    return WaitingUpdates(track, matrices, blocks, ks, schedule, tolerance)
