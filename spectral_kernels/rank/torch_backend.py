"""Plain torch, on any device: ranks and norms from singular values, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import METRICS
from spectral_kernels.rank.torch_bounds import bound_table
from spectral_kernels.runtime.numerics import default_rtol


def summary_tables(
    spectra: list[Tensor], shapes: list[tuple[int, int]], rtol: float
) -> list[Tensor]:
    """Return the float64 table (..., 7) of each spectrum (..., r), columns as in ``METRICS``.

    ``rtol`` below zero means max(m, n) * eps of the spectrum's dtype.
    """
    return [
        _table(S, rtol if rtol >= 0 else default_rtol(m, n, S.dtype))
        for S, (m, n) in zip(spectra, shapes, strict=True)
    ]


def _table(S: Tensor, rtol: float) -> Tensor:
    if S.shape[-1] == 0:
        return S.new_zeros((*S.shape[:-1], len(METRICS)), dtype=torch.float64)
    S = S.double()
    spectral = S.amax(dim=-1)
    # Relative to the largest value nothing over- or underflows, whatever the scale.
    x = S / torch.where(spectral > 0, spectral, 1.0).unsqueeze(-1)
    total = x.sum(dim=-1)
    squares = (x * x).sum(dim=-1)
    p = x / torch.where(total > 0, total, 1.0).unsqueeze(-1)
    # Adding zero turns the -0.0 of a single value into 0.0.
    entropy = torch.special.entr(p).sum(dim=-1) + 0.0
    table = torch.stack(
        (
            entropy,
            torch.where(total > 0, entropy.exp(), 0.0),
            squares,
            (x > rtol).sum(dim=-1).double(),
            spectral,
            spectral * total,
            spectral * squares.sqrt(),
        ),
        dim=-1,
    )
    return torch.where(torch.isfinite(total).unsqueeze(-1), table, float("nan"))


class BoundedTables:
    """Summaries and their bounds; see ``rank.summary_bounds``."""

    def __init__(
        self,
        spectra: list[Tensor],
        bounds: list[Tensor],
        norms: list[Tensor],
        shapes: list[tuple[int, int]],
    ) -> None:
        self._entries = list(zip(spectra, bounds, norms, shapes, strict=True))
        count = sum(norm.numel() for norm in norms)
        self.out = norms[0].new_zeros(2, count, len(METRICS), dtype=torch.float64)

    def run(self) -> Tensor:
        """Return ``out`` (2, matrices, 7), which the next run overwrites."""
        pairs = []
        for S, b, norm, shape in self._entries:
            table = _table(S, default_rtol(*shape, S.dtype))
            errors = bound_table(S, b, norm, table, default_rtol(*shape, S.dtype))
            pairs.append(torch.stack((table, errors)).reshape(2, -1, len(METRICS)))
        return self.out.copy_(torch.cat(pairs, dim=1))
