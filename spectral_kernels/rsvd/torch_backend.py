"""Plain torch, on any device: Halko, Martinsson, Tropp 2011, Algorithms 4.4 and 5.1."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.rsvd.normals import start_block
from spectral_kernels.runtime import numerics


def rsvd(
    matrices: list[Tensor],
    starts: list[Tensor],
    ks: list[int],
    widths: list[int],
    seed: Tensor,
    power_iters: int,
) -> list[SVD]:
    """Return k leading triplets of each matrix (..., m, n).

    The start block (..., n, width) has the columns of the one given, then random ones.
    """
    number = int(seed)
    results = []
    for i, (A, start, k, width) in enumerate(zip(matrices, starts, ks, widths, strict=True)):
        block = start_block(A, start, width, number, i)
        results.append(from_block(A, block, k, power_iters))
    return results


def from_block(A: Tensor, start: Tensor, k: int, power_iters: int) -> SVD:
    """Return k leading triplets of A (..., m, n) from the start block (..., n, l)."""
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
