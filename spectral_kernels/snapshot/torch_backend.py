"""Plain torch, on any device: copies, and their statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.runtime import numerics


def snapshot(matrices: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return packed copies of the matrices and the float64 statistics (count, 3)."""
    copies = [_copy(A) for A in matrices]
    return copies, torch.cat([_statistics(A) for A in copies])


class Copies:
    """Copies and statistics of matrices that stay where they are, in memory that stays."""

    def __init__(self, matrices: list[Tensor]) -> None:
        self._matrices = matrices
        self.copies, self.statistics = snapshot(matrices)

    def run(self) -> None:
        """Copy the matrices as they are now."""
        for A, copy in zip(self._matrices, self.copies, strict=True):
            copy.copy_(A)
        self.statistics.copy_(torch.cat([_statistics(A) for A in self.copies]))


def _copy(A: Tensor) -> Tensor:
    return torch.empty(A.shape, dtype=numerics.result_dtype(A.dtype), device=A.device).copy_(A)


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
