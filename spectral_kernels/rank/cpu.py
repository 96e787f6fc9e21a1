"""Adapter to the compiled kernels: one call for all spectra."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.numerics import DTYPE_CODES
from spectral_kernels.results import METRICS


def summary_tables(
    spectra: list[Tensor], shapes: list[tuple[int, int]], rtol: float
) -> list[Tensor]:
    """Return the float64 table (..., 7) of each spectrum (..., r), columns as in ``METRICS``."""
    tables = []
    jobs = []
    owners = []
    width = len(METRICS)
    for S, (m, n) in zip(spectra, shapes, strict=True):
        *batch, r = S.shape
        if S.numel() == 0:
            tables.append(torch.zeros((*batch, width), dtype=torch.float64))
            continue
        owner = S.contiguous()
        owners.append(owner)
        table = torch.empty(*batch, width, dtype=torch.float64)
        tables.append(table)
        count = table.numel() // width
        code = DTYPE_CODES[S.dtype]
        jobs.append((owner.data_ptr(), code, count, r, m, n, rtol, table.data_ptr()))
    if jobs:
        _C.summarize(jobs, torch.get_num_threads())
    return tables


def bounded_tables(
    spectra: list[Tensor],
    bounds: list[Tensor],
    norms: list[Tensor],
    shapes: list[tuple[int, int]],
) -> list[tuple[Tensor, Tensor]]:
    """Return ``summary_tables`` and the table of its bounds; see ``rank.summary_bounds``."""
    counts = [S.shape[:-1].numel() if S.shape[-1] else 0 for S in spectra]
    # One block for all: a tensor for every spectrum would cost more than its numbers.
    block = torch.empty(2, sum(counts), len(METRICS), dtype=torch.float64)
    values, size = block.data_ptr(), len(METRICS) * block.element_size()
    jobs = []
    owners = []
    at = 0
    for S, b, norm, (m, n), count in zip(spectra, bounds, norms, shapes, counts, strict=True):
        if not count:
            continue
        S, b, norm = S.contiguous(), b.contiguous(), norm.contiguous()
        owners.append((S, b, norm))
        out = values + at * size
        job = (S.data_ptr(), DTYPE_CODES[S.dtype], count, S.shape[-1], m, n, -1.0, out)
        jobs.append((*job, b.data_ptr(), norm.data_ptr(), out + sum(counts) * size))
        at += count
    if jobs:
        _C.summarize_with_bounds(jobs, torch.get_num_threads())
    return _split(block, counts, spectra)


def _split(block: Tensor, counts: list[int], spectra: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    parts = torch.split(block, counts, dim=1)
    tables = []
    for part, S in zip(parts, spectra, strict=True):
        shape = (2, *S.shape[:-1], len(METRICS))
        table = part.reshape(shape) if S.shape[-1] else torch.zeros(shape, dtype=torch.float64)
        tables.append((table[0], table[1]))
    return tables
