"""Launcher of the Triton kernels: the summaries of all spectra in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import triton_runtime
from spectral_kernels.numerics import DTYPE_CODES, default_rtol
from spectral_kernels.rank import triton_kernels
from spectral_kernels.rank.torch_backend import BoundedTables
from spectral_kernels.results import METRICS

__all__ = ["BoundedTables", "plan", "summary_tables"]


def plan(longest: int) -> dict[str, int]:
    """Return the launch parameters for spectra of at most ``longest`` values.

    A warp for short spectra, whose sums then need no shared memory; four for longer ones, with
    eight values a thread in flight. Not measured.
    """
    short = longest <= 128
    return {"BLOCK": 128 if short else 1024, "num_warps": 1 if short else 4, "num_stages": 1}


def summary_tables(
    spectra: list[Tensor], shapes: list[tuple[int, int]], rtol: float
) -> list[Tensor]:
    """Return the float64 table (..., 7) of each spectrum (..., r), columns as in ``METRICS``.

    ``rtol`` below zero means max(m, n) * eps of the spectrum's dtype.
    """
    width = len(METRICS)
    sizes = [S.shape[:-1].numel() for S in spectra]
    block = torch.empty(sum(sizes), width, dtype=torch.float64, device=spectra[0].device)
    owners = [S.contiguous() for S in spectra]
    jobs, steps = [], []
    base = block.data_ptr()
    for S, (m, n) in zip(owners, shapes, strict=True):
        threshold = rtol if rtol >= 0 else default_rtol(m, n, S.dtype)
        r = S.shape[-1]
        jobs.append([S.data_ptr() - base, DTYPE_CODES[S.dtype], r, triton_runtime.bits(threshold)])
        steps.append([r * S.element_size(), 0, 0, 0])
    if len(block):
        table = triton_runtime.on_device(triton_runtime.unrolled(jobs, sizes, steps), block.device)
        triton_kernels.summaries[(len(block),)](
            base_ptr=block.view(torch.uint8),
            jobs_ptr=table,
            out_ptr=block,
            **plan(max(S.shape[-1] for S in spectra)),
            **triton_runtime.OPTIONS,
        )
    parts = torch.split(block, sizes)
    return [part.reshape(*S.shape[:-1], width) for part, S in zip(parts, spectra, strict=True)]
