"""The SVD with vectors of batches, float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named

CASES = [(512, 8, 8), (512, 16, 16), (128, 32, 32), (32, 64, 64), (16, 128, 128), (8, 512, 128),
         (4, 256, 256)]  # fmt: skip
EPS = float(np.finfo(np.float32).eps)
NAMES = ["ours", "torch.linalg.svd", "numpy.linalg.svd"]


def compare_svd(batch: int, m: int, n: int) -> Comparison:
    A = torch.randn(batch, m, n, generator=torch.Generator().manual_seed(0))
    array = A.numpy()
    wide = array.astype(np.float64)
    top = np.linalg.norm(wide, 2, axis=(-2, -1))

    def residual(result: Any) -> float:
        """max over the batch of |A - U S Vh|_2 / (eps sigma_1) and of the loss of orthogonality."""
        U, S, Vh = (np.asarray(x, dtype=np.float64) for x in result)
        gaps = np.linalg.norm(wide - (U * S[..., None, :]) @ Vh, 2, axis=(-2, -1)) / top
        identity = np.eye(S.shape[-1])
        return float(
            max(
                gaps.max(),
                np.abs(np.swapaxes(U, -1, -2) @ U - identity).max(),
                np.abs(Vh @ np.swapaxes(Vh, -1, -2) - identity).max(),
            )
            / EPS
        )

    contenders = (
        Contender(NAMES[0], lambda: sk.svd(A), residual, limit=16.0),
        Contender(NAMES[1], lambda: torch.linalg.svd(A, full_matrices=False), residual),
        Contender(NAMES[2], lambda: np.linalg.svd(array, full_matrices=False), residual),
    )
    return Comparison("svd", f"{batch} x {m} x {n}", contenders, "eps (residual, orthogonality)")


@parametrize(compare_svd, CASES, NAMES)
def test_svd(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
