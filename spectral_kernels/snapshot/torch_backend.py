"""Plain torch, on any device: copies, and their statistics."""

from __future__ import annotations

import torch
from torch import Tensor


class Copies:
    """Fills the copies of matrices, and ``statistics``, as the compiled ones do."""

    def __init__(self, matrices: list[Tensor], copies: list[Tensor]) -> None:
        self._matrices, self._copies = matrices, copies
        count = sum(A.shape[:-2].numel() for A in matrices)
        self.statistics = matrices[0].new_empty((count, 3), dtype=torch.float64)

    def run(self) -> None:
        """Copy the matrices as they are now."""
        for A, copy in zip(self._matrices, self._copies, strict=True):
            copy.copy_(A)
        self.statistics.copy_(torch.cat([_statistics(A) for A in self._copies]))


def _statistics(A: Tensor) -> Tensor:
    count = A.shape[:-2].numel()
    if A.numel() == 0:
        return A.new_tensor([0.0, 0.0, 1.0], dtype=torch.float64).repeat(count, 1)
    rows = A.reshape(count, -1)
    largest = torch.linalg.vector_norm(rows, float("inf"), dim=-1).double()
    finite = torch.isfinite(largest)
    scale = torch.where(finite & (largest > 0), largest, 1.0)
    norm = scale * (rows.double() / scale[:, None]).square().sum(dim=-1).sqrt()
    nan = float("nan")
    return torch.stack(
        (torch.where(finite, largest, nan), torch.where(finite, norm, nan), finite.double()), dim=-1
    )
