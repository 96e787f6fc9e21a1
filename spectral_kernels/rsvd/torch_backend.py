"""Plain torch, on any device: Halko, Martinsson, Tropp 2011, Algorithms 4.4 and 5.1."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.rsvd.normals import Sketch
from spectral_kernels.runtime import numerics
from spectral_kernels.runtime.schemas import new_triplets


def rsvd(sketches: list[Sketch], seed: int, power_iters: int) -> list[SVD]:
    """Return k leading triplets of each matrix."""
    return [from_block(x.A, x.block(seed), x.k, power_iters) for x in sketches]


def from_block(A: Tensor, start: Tensor, k: int, power_iters: int) -> SVD:
    """Return k leading triplets of A (..., m, n) from the start block (..., n, l)."""
    A = A.to(numerics.result_dtype(A.dtype))
    if A.numel() == 0:
        return SVD(*new_triplets(A, k))
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
