"""Launchers of the Triton kernels: summaries of all spectra, and their bounds, in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_kernels.entry.results import METRICS
from spectral_kernels.rank import triton_kernels
from spectral_kernels.runtime.memory import addresses
from spectral_kernels.runtime.numerics import DTYPE_CODES, default_rtol
from spectral_kernels.runtime.triton.host import bits, launch, on_device, unrolled

_WIDTH = len(METRICS)


def plan(longest: int, bounds: bool) -> dict[str, Any]:
    """Return the launch parameters for spectra of at most ``longest`` values.

    A warp for short spectra, whose sums then need no shared memory; four for longer ones, two
    values a thread, since with more the sums of the bounds do not fit 255 registers. Not measured.
    """
    shape = (128, 1) if longest <= 128 else (256, 4)
    return {"BOUNDS": bounds, "BLOCK": shape[0], "num_warps": shape[1], "num_stages": 1}


def summary_tables(
    spectra: list[Tensor], shapes: list[tuple[int, int]], rtol: float
) -> list[Tensor]:
    """Return the float64 table (..., 7) of each spectrum (..., r), columns as in ``METRICS``.

    ``rtol`` below zero means max(m, n) * eps of the spectrum's dtype.
    """
    spectra = [S.contiguous() for S in spectra]
    tables = [
        torch.empty(*S.shape[:-1], _WIDTH, dtype=torch.float64, device=S.device) for S in spectra
    ]
    _launch(_jobs(spectra, shapes, rtol, [x.data_ptr() for x in tables]), spectra, False)
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
        self._spectra, self._bounds, self._norms = (
            [x.contiguous() for x in given] for given in (spectra, bounds, norms)
        )
        counts = [norm.numel() for norm in norms]
        self.out = torch.empty(
            2, sum(counts), _WIDTH, dtype=torch.float64, device=spectra[0].device
        )
        places = addresses(self.out, [_WIDTH * count for count in counts])
        beside = list(zip(self._bounds, self._norms, strict=True))
        self._table = _jobs(self._spectra, shapes, -1.0, places, beside)

    def run(self) -> Tensor:
        """Return (2, matrices, 7), which the next run overwrites."""
        _launch(self._table, self._spectra, True)
        return self.out


def _jobs(
    spectra: list[Tensor],
    shapes: list[tuple[int, int]],
    rtol: float,
    places: list[int],
    beside: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Return the kernel's table of jobs, one a matrix.

    places: addresses of the summaries, whose bounds lie as far behind as all summaries are long.
    beside: bounds and norms.
    """
    base = spectra[0].data_ptr()
    counts = [S.shape[:-1].numel() for S in spectra]
    plane = 8 * _WIDTH * sum(counts)
    jobs, steps = [], []
    for i, (S, (m, n)) in enumerate(zip(spectra, shapes, strict=True)):
        threshold = rtol if rtol >= 0 else default_rtol(m, n, S.dtype)
        r = S.shape[-1]
        errors = (0, 0) if beside is None else [x.data_ptr() - base for x in beside[i]]
        begin = [S.data_ptr() - base, DTYPE_CODES[S.dtype], r, bits(threshold)]
        jobs.append([*begin, *errors, places[i] - base, places[i] - base + plane])
        steps.append([r * S.element_size(), 0, 0, 0, 8 * r, 8, 8 * _WIDTH, 8 * _WIDTH])
    return on_device(unrolled(jobs, counts, steps), spectra[0].device)


def _launch(jobs: Tensor, spectra: list[Tensor], bounds: bool) -> None:
    longest = max(S.shape[-1] for S in spectra)
    launch(
        triton_kernels.summaries,
        len(jobs),
        jobs,
        # Flat: the strides of a side of length one need not be those that a view asks for.
        base_ptr=spectra[0].reshape(-1).view(torch.uint8),
        jobs_ptr=jobs,
        **plan(longest, bounds),
    )
