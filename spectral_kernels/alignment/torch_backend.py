"""Plain torch, on any device: diagonals of products without the products."""

from __future__ import annotations

import torch
from torch import Tensor


def diagonals(pairs: list[tuple[Tensor, Tensor]], k: int) -> list[Tensor]:
    """Return |sum_a U[a, i] Vh[i, a]| for i < k, of each pair U (..., m, r), Vh (..., r', m).

    Accumulated in float64.
    """
    return [_diagonal(U, Vh, min(k, U.shape[-1], Vh.shape[-2])) for U, Vh in pairs]


def _diagonal(U: Tensor, Vh: Tensor, k: int) -> Tensor:
    product = U[..., :k].double() * Vh[..., :k, :].mT.double()
    return product.sum(dim=-2).abs().to(U.dtype)


class Diagonals:
    """``diagonals`` of matrices U (m, r), Vh (r', m) of one dtype that stay where they are."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], k: int) -> None:
        self._pairs, self._k = pairs, k

    def run(self) -> Tensor:
        """Return all diagonals, one after the other."""
        return torch.cat(diagonals(self._pairs, self._k))
