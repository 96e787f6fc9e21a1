"""What a tracker carries from step to step, and what one update gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.results import SVD

WORK = ("kept", "rotated", "rotated twice", "rotated three times", "solved")
"""What an update did to a matrix, by the codes 0 to 4 of the kernels."""

ROTATIONS = 3
"""The most rotations before a matrix is solved anew."""

SOLVED = ROTATIONS + 1

NOT_FINITE = "not finite"
"""What it did to a matrix with NaN or Inf: nothing."""

# What float32 rounding may take of the tolerance, for a flat spectrum, where it is most.
_ROUNDING_SHARE = 0.6


@dataclass
class State:
    """The vectors of a batch of B matrices (m, n), r = min(m, n).

    ``vectors`` (B, r, r): column j of each is a singular vector on the short side (right for
    m >= n, left otherwise), in an order of its own; a column stays with its vector while the
    spectrum is sorted anew. float32 where the sweeps are, else float64. ``drift`` (B,) float64:
    a bound of ||V^T V - I||_2. ``names`` (B, r + 1) int64: the identity of every column, and the
    next one to give. ``warm`` says for each matrix whether there are vectors yet.
    """

    vectors: Tensor
    drift: Tensor
    names: Tensor
    warm: list[bool]

    @staticmethod
    def cold(count: int, r: int, dtype: torch.dtype, device: torch.device) -> State:
        """Room for the vectors of so many matrices."""
        return State(
            torch.zeros((count, r, r), dtype=dtype, device=device),
            torch.zeros(count, dtype=torch.float64),
            torch.zeros((count, r + 1), dtype=torch.int64),
            [False] * count,
        )


def sweep_dtype(dtype: torch.dtype, shape: tuple[int, int], tolerance: float) -> torch.dtype:
    """Return the type of the vectors and the sweeps of matrices of this type and shape.

    float32 where the proved rounding of its products (bounds.py) leaves room below the tolerance
    for a flat spectrum, whose ||X||_F is sqrt(r) / 2 sigma_1 or less: at 1e-3 up to a short side
    of about 220.
    """
    r, rows = min(shape), max(shape)
    gamma_r, gamma_rows = ((34 + length / 32) * 2.0**-24 for length in (r, rows))
    rounding = 0.5 * r * (1.5 * gamma_r + 0.5 * gamma_rows)
    single = dtype != torch.float64 and rounding <= _ROUNDING_SHARE * tolerance
    return torch.float32 if single else torch.float64


class Tracked(NamedTuple):
    """One update of a batch.

    Factors; bounds (B, r) float64 of each value and (B,) of the 2-norm of all their errors;
    identities (B, r) int64; and one entry of work per matrix.
    """

    svd: SVD
    bounds: Tensor
    error_norms: Tensor
    identities: Tensor
    work: list[str]
