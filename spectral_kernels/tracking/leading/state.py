"""What a tracker of leading triplets carries from step to step, and what an update gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from spectral_kernels.entry.results import SVD

WORK = ("solved", "one iteration", "two iterations", "three iterations")
"""What an update did to a matrix, by the codes of the kernels; "solved" is a new start."""

WARM_ITERATIONS = 3
COLD_ITERATIONS = 16
SETTLED = 0.1
"""The part of the tolerance by which the last half step may have moved a value."""
UNSETTLED = 1.0
"""A value that still moves by this part of it in the last warm iteration was not being followed."""
PROGRESS = 0.5
"""An iteration more than the values need must halve the bounds, or is the last."""


@dataclass
class Block:
    """The vectors of a batch of B matrices (m, n).

    ``vectors`` (B, n, l), float64 for float64 matrices, else float32: the first k columns are the
    last right singular vectors, the others what comes after them. ``identities`` (B, l + 1)
    int64: the number of every column, and the first that is still free. ``warm`` says
    for each matrix whether there are vectors yet.
    """

    vectors: Tensor
    identities: Tensor
    warm: list[bool]

    def started(self) -> list[bool]:
        """Tell of blocks on a device whether there are vectors yet: those have numbers."""
        return [bool(number > 0) for number in self.identities[:, -1].tolist()]


class Randomness(NamedTuple):
    """Random columns: ``start`` (n, l), and ``fresh`` (n, p) for the last p of a warm block."""

    start: Tensor
    fresh: Tensor


class LeadingResult(NamedTuple):
    """One update of a batch: k triplets and, in float64, what is known of them.

    ``bounds`` and ``residuals`` (B, k), ``error_norms`` and ``frobenius_norms`` of the whole
    matrices (B,); ``identities`` (B, k) int64; one entry of ``work`` per matrix.
    """

    svd: SVD
    bounds: Tensor
    error_norms: Tensor
    residuals: Tensor
    frobenius_norms: Tensor
    identities: Tensor
    work: Sequence[str]
