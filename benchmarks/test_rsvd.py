"""Ten leading triplets of batches, float32.

The error is that of the approximation, in excess of the best one of rank ten:
|A - U S Vh|_F / |A - A_10|_F - 1, mean over the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named

K = 10
CASES = [(8, 512, 128), (4, 768, 768), (1, 3072, 768)]
NAMES = ["ours", "torch.svd_lowrank, q = 10", "torch.svd_lowrank, q = 18",
         "sklearn randomized_svd", "scipy svds"]  # fmt: skip


def sklearn_rsvd(A: np.ndarray[Any, Any]) -> Any:
    from sklearn.utils.extmath import randomized_svd

    parts = [
        randomized_svd(a, K, n_oversamples=8, n_iter=2, power_iteration_normalizer="QR",
                       random_state=0)
        for a in A
    ]  # fmt: skip
    return tuple(np.stack(x) for x in zip(*parts, strict=True))


def scipy_svds(A: np.ndarray[Any, Any]) -> Any:
    from scipy.sparse.linalg import svds

    parts = [svds(a, K, random_state=0) for a in A]
    return tuple(np.stack(x) for x in zip(*parts, strict=True))


def lowrank(A: Tensor, q: int) -> Any:
    U, S, V = torch.svd_lowrank(A, q=q, niter=2)
    return U[..., :K], S[..., :K], V.mT[..., :K, :]


def compare_rsvd(batch: int, m: int, n: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(batch, m, n, generator=generator)
    array = A.numpy()
    wide = array.astype(np.float64)
    tails = np.sqrt((np.linalg.svd(wide, compute_uv=False)[..., K:] ** 2).sum(-1))

    def excess(result: Any) -> float:
        U, S, Vh = (np.asarray(x, dtype=np.float64) for x in result)
        rest = np.linalg.norm(wide - (U * S[..., None, :]) @ Vh, axis=(-2, -1))
        return float((rest / tails - 1).mean())

    # Not worse than torch at its own k, which spends no oversampling.
    torch.manual_seed(0)
    limit = excess(lowrank(A, K))
    contenders = (
        Contender(NAMES[0], lambda: sk.rsvd(A, K, generator=generator), excess, limit=limit),
        Contender(NAMES[1], lambda: lowrank(A, K), excess),
        Contender(NAMES[2], lambda: lowrank(A, K + 8), excess),
        Contender(NAMES[3], lambda: sklearn_rsvd(array), excess, needs="sklearn"),
        Contender(NAMES[4], lambda: scipy_svds(array), excess, needs="scipy"),
    )
    return Comparison(f"rsvd, k = {K}", f"{batch} x {m} x {n}", contenders, "over the best rank 10")


@parametrize(compare_rsvd, CASES, NAMES)
def test_rsvd(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
