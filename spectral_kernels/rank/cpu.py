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
