"""What a tracker carries from step to step, and what one update gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from spectral_kernels.results import SVD

WORK = ("kept", "rotated", "rotated twice", "solved")
"""What an update did to a matrix, by the codes 0 to 3 of the kernels."""

NOT_FINITE = "not finite"
"""What it did to a matrix with NaN or Inf: nothing."""


@dataclass
class State:
    """The vectors of a batch of B matrices (m, n), r = min(m, n).

    ``vectors`` (B, r, r) float64: column j of each is a singular vector on the short side (right
    for m >= n, left otherwise), in an order of its own; a column stays with its vector while the
    spectrum is sorted anew. ``warm`` says for each matrix whether there are vectors yet.
    """

    vectors: Tensor
    warm: list[bool]


class Tracked(NamedTuple):
    """One update of a batch: factors, bounds (B, r) float64, and one entry of work per matrix."""

    svd: SVD
    bounds: Tensor
    work: list[str]
