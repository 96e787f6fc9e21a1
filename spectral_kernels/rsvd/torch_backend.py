"""Plain torch, on any device: Halko, Martinsson, Tropp 2011, Algorithms 4.4 and 5.1."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import numerics
from spectral_kernels.results import SVD


def rsvd(
    matrices: list[Tensor], starts: list[Tensor], ks: list[int], power_iters: int
) -> list[SVD]:
    """Return k leading triplets of each matrix (..., m, n) from its start block (..., n, l)."""
    return [
        _rsvd(A, start, k, power_iters) for A, start, k in zip(matrices, starts, ks, strict=True)
    ]


def _rsvd(A: Tensor, start: Tensor, k: int, power_iters: int) -> SVD:
    *batch, m, n = A.shape
    A = A.to(numerics.result_dtype(A.dtype))
    if A.numel() == 0:
        return SVD(
            A.new_empty((*batch, k, m)).mT, A.new_empty((*batch, k)), A.new_empty((*batch, k, n))
        )
    A, exponent, bad = numerics.normalize(A)
    # Orthonormalised after every product: without it the small directions of the block drown in
    # the rounding of the large ones after one or two iterations (Halko, Section 4.5).
    Q = torch.linalg.qr(A @ start.to(A.dtype)).Q
    for _ in range(power_iters):
        Q = torch.linalg.qr(A.mT @ Q).Q
        Q = torch.linalg.qr(A @ Q).Q
    U, S, Vh = torch.linalg.svd(Q.mT @ A, full_matrices=False)
    U, Vh = numerics.fix_signs(Q @ U[..., :k], Vh[..., :k, :])
    S = numerics.scale(S[..., :k], exponent[..., None])
    U, S, Vh = (numerics.poison(x, bad) for x in (U, S, Vh))
    return SVD(numerics.by_columns(U), S.contiguous(), Vh.contiguous())
