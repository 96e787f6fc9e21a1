"""Adapter to the compiled kernels: one call for all spectra."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.entry.results import METRICS
from spectral_kernels.runtime.numerics import DTYPE_CODES


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


class BoundedTables:
    """Summaries and their bounds of spectra in the same memory; see ``rank/summary_bounds.py``."""

    def __init__(
        self,
        spectra: list[Tensor],
        bounds: list[Tensor],
        norms: list[Tensor],
        shapes: list[tuple[int, int]],
    ) -> None:
        counts = [S.shape[:-1].numel() for S in spectra]
        self.out = torch.zeros(2, sum(counts), len(METRICS), dtype=torch.float64)
        out, size = self.out.data_ptr(), len(METRICS) * self.out.element_size()
        half = size * sum(counts)
        self._owners = []
        jobs = []
        for S, b, norm, (m, n), count in zip(spectra, bounds, norms, shapes, counts, strict=True):
            if S.shape[-1]:
                S, b, norm = S.contiguous(), b.contiguous(), norm.contiguous()
                self._owners.append((S, b, norm))
                job = (S.data_ptr(), DTYPE_CODES[S.dtype], count, S.shape[-1], m, n, -1.0, out)
                jobs.append((*job, b.data_ptr(), norm.data_ptr(), out + half))
            out += count * size
        self.calls = [("summarize_with_bounds", jobs)]

    def run(self) -> Tensor:
        """Return ``out`` (2, matrices, 7), which the next run overwrites."""
        _C.summarize_with_bounds(self.calls[0][1], torch.get_num_threads())
        return self.out
