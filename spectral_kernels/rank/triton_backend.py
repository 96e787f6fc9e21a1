"""Launchers of the Triton kernels: summaries of all spectra, and their bounds, in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_kernels.numerics import DTYPE_CODES, default_rtol
from spectral_kernels.rank import triton_kernels
from spectral_kernels.results import METRICS
from spectral_kernels.triton_runtime import OPTIONS, bits, on_device, unrolled

_WIDTH = len(METRICS)


def plan(longest: int, bounds: bool) -> dict[str, Any]:
    """Return the launch parameters for spectra of at most ``longest`` values.

    A warp for short spectra, whose sums then need no shared memory; eight for longer ones, two
    values a thread, since with more the sums of the bounds do not fit 255 registers. Not measured.
    """
    shape = (128, 1) if longest <= 128 else (512, 8)
    return {"BOUNDS": bounds, "BLOCK": shape[0], "num_warps": shape[1], "num_stages": 1}


def summary_tables(
    spectra: list[Tensor], shapes: list[tuple[int, int]], rtol: float
) -> list[Tensor]:
    """Return the float64 table (..., 7) of each spectrum (..., r), columns as in ``METRICS``.

    ``rtol`` below zero means max(m, n) * eps of the spectrum's dtype.
    """
    spectra = [S.contiguous() for S in spectra]
    counts = [S.shape[:-1].numel() for S in spectra]
    out = torch.empty(1, sum(counts), _WIDTH, dtype=torch.float64, device=spectra[0].device)
    _launch(_jobs(out, spectra, shapes, rtol), out, spectra)
    parts = torch.split(out[0], counts)
    return [part.reshape(*S.shape[:-1], _WIDTH) for part, S in zip(parts, spectra, strict=True)]


class BoundedTables:
    """Summaries and their bounds of spectra that stay where they are; see ``summary_bounds``."""

    def __init__(
        self,
        spectra: list[Tensor],
        bounds: list[Tensor],
        norms: list[Tensor],
        shapes: list[tuple[int, int]],
    ) -> None:
        self._spectra, self._bounds, self._norms = (
            [x.contiguous() for x in given] for given in (spectra, bounds, norms)
        )
        rows = sum(norm.numel() for norm in norms)
        self._block = torch.empty(2, rows, _WIDTH, dtype=torch.float64, device=spectra[0].device)
        beside = list(zip(self._bounds, self._norms, strict=True))
        self._table = _jobs(self._block, self._spectra, shapes, -1.0, beside)

    def run(self) -> Tensor:
        """Return (2, matrices, 7), which the next run overwrites."""
        _launch(self._table, self._block, self._spectra)
        return self._block


def _jobs(
    out: Tensor,
    spectra: list[Tensor],
    shapes: list[tuple[int, int]],
    rtol: float,
    beside: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Return the kernel's table of jobs, one a matrix. ``beside``: bounds and norms."""
    base = out.data_ptr()
    jobs, steps = [], []
    for i, (S, (m, n)) in enumerate(zip(spectra, shapes, strict=True)):
        threshold = rtol if rtol >= 0 else default_rtol(m, n, S.dtype)
        r = S.shape[-1]
        places = (0, 0) if beside is None else [x.data_ptr() - base for x in beside[i]]
        jobs.append([S.data_ptr() - base, DTYPE_CODES[S.dtype], r, bits(threshold), *places])
        steps.append([r * S.element_size(), 0, 0, 0, 8 * r, 8])
    counts = [S.shape[:-1].numel() for S in spectra]
    return on_device(unrolled(jobs, counts, steps), out.device)


def _launch(jobs: Tensor, out: Tensor, spectra: list[Tensor]) -> None:
    planes, rows, _ = out.shape
    if rows == 0:
        return
    triton_kernels.summaries[(rows,)](
        base_ptr=out.view(torch.uint8),
        jobs_ptr=jobs,
        out_ptr=out,
        rows=rows,
        **plan(max(S.shape[-1] for S in spectra), planes == 2),
        **OPTIONS,
    )
