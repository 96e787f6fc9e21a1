"""Singular values of batches, float32: all sizes a model has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named

# Batch, m, n: as many matrices as make a run of some milliseconds, and of the large ones a single
# matrix too, which has no neighbour to share the threads or the lanes with.
CASES = [(512, 8, 8), (512, 16, 16), (128, 32, 32), (32, 64, 64), (16, 128, 128), (8, 512, 128),
         (4, 256, 256), (8, 512, 512), (1, 768, 768), (4, 768, 768), (2, 1024, 1024),
         (2, 3072, 768), (2, 768, 3072), (2, 512, 4608), (1, 512, 4608)]  # fmt: skip
EPS = float(np.finfo(np.float32).eps)
NAMES = ["ours", "torch.linalg.svdvals", "float64 Gram + torch.linalg.eigvalsh",
         "numpy.linalg.svd, values", "numpy.linalg.svd", "scipy.linalg.svdvals"]  # fmt: skip


def error_in_eps(truth: Tensor) -> Any:
    """max |s - sigma| / (eps sigma_1) over a batch."""

    def error(values: Any) -> float:
        found = torch.as_tensor(np.asarray(values), dtype=torch.float64)
        return float(((found - truth).abs().amax(-1) / (EPS * truth[..., 0])).max())

    return error


def gram_values(A: Tensor) -> Tensor:
    """The textbook shortcut, in the precision that makes it correct."""
    wide = A.double() if A.shape[-2] >= A.shape[-1] else A.double().mT
    return torch.linalg.eigvalsh(wide.mT @ wide).clamp_min(0).sqrt().flip(-1)


def scipy_values(A: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    from scipy.linalg import svdvals

    return np.stack([svdvals(a) for a in A])


def compare_svdvals(batch: int, m: int, n: int) -> Comparison:
    A = torch.randn(batch, m, n, generator=torch.Generator().manual_seed(0))
    array = A.numpy()
    truth = np.linalg.svd(array.astype(np.float64), compute_uv=False)
    error = error_in_eps(torch.from_numpy(truth))
    runs = [
        lambda: sk.svdvals(A),
        lambda: torch.linalg.svdvals(A),
        lambda: gram_values(A),
        lambda: np.linalg.svd(array, compute_uv=False),
        lambda: np.linalg.svd(array, full_matrices=False)[1],
        lambda: scipy_values(array),
    ]
    contenders = tuple(
        Contender(name, run, error, limit=8.0 if name == "ours" else None,
                  needs="scipy" if "scipy" in name else None)
        for name, run in zip(NAMES, runs, strict=True)
    )  # fmt: skip
    return Comparison("svdvals", f"{batch} x {m} x {n}", contenders, "eps σ₁")


@parametrize(compare_svdvals, CASES, NAMES)
def test_svdvals(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
