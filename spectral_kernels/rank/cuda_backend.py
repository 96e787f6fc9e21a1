"""Launches of csrc/cuda/summary.cu: every spectrum of a list in one, its bounds with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.results import METRICS
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.runtime.cuda.table import SUMMARY_JOBS
from spectral_kernels.runtime.numerics import DTYPE_CODES, default_rtol

# A warp for each spectrum. Four to a block: a block of one would leave half of a multiprocessor's
# warps unused at 32 blocks each (a count, not a measurement).
_WARPS = 4


class _Job(NamedTuple):
    """A batch of spectra as the kernel's struct has it; see summary.cu."""

    values: Tensor
    table: Tensor
    bounds: Tensor | None
    norms: Tensor | None
    errors: Tensor | None
    code: int
    spectra: int
    r: int
    rtol: float


_NONE = (None, None, None, None, None, 0, 0, 0, 0.0)


def summary_tables(
    spectra: list[Tensor], shapes: list[tuple[int, int]], rtol: float
) -> list[Tensor]:
    """Return the float64 table (..., 7) of each spectrum (..., r), columns as in ``METRICS``.

    ``rtol`` below zero means max(m, n) * eps of the spectrum's dtype. One launch for 40 batches.
    """
    tables = []
    jobs = []
    for S, (m, n) in zip(spectra, shapes, strict=True):
        table = S.new_empty((*S.shape[:-1], len(METRICS)), dtype=torch.float64)
        tables.append(table)
        if S.numel() == 0:
            table.zero_()
            continue
        known = rtol if rtol >= 0 else default_rtol(m, n, S.dtype)
        jobs.append(_job(S.contiguous(), table, known))
    _launch(jobs)
    return tables


def _job(
    S: Tensor,
    table: Tensor,
    rtol: float,
    bounds: Tensor | None = None,
    norms: Tensor | None = None,
    errors: Tensor | None = None,
) -> _Job:
    r = S.shape[-1]
    code = DTYPE_CODES[S.dtype]
    return _Job(S, table, bounds, norms, errors, code, S.numel() // r, r, rtol)


def _launch(jobs: list[_Job]) -> None:
    for i in range(0, len(jobs), SUMMARY_JOBS):
        part = jobs[i : i + SUMMARY_JOBS]
        rows = [*part, *[_NONE] * (SUMMARY_JOBS - len(part))]
        grid = -(-sum(job.spectra for job in part) // _WARPS)
        arguments = [entry for row in rows for entry in row]
        launcher.launch("summarize", grid, 32 * _WARPS, 0, len(part), *arguments)


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
        size = (2, sum(counts), len(METRICS))
        self.out = spectra[0].new_zeros(size, dtype=torch.float64)
        self._jobs = []
        rows = zip(*(half.split(counts) for half in self.out), strict=True)
        for S, b, norm, shape, (table, errors) in zip(
            spectra, bounds, norms, shapes, rows, strict=True
        ):
            if S.numel():
                given = (S.contiguous(), table, default_rtol(*shape, S.dtype))
                self._jobs.append(_job(*given, b.contiguous(), norm.contiguous(), errors))

    def run(self) -> Tensor:
        """Return (2, matrices, 7), which the next run overwrites."""
        _launch(self._jobs)
        return self.out
