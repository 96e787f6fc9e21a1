"""Randomized SVD on Triton kernels: products in 3xTF32, Cholesky QR in float64, nothing waits.

Halko, Martinsson, Tropp 2011, Algorithms 4.4 and 5.1. Matrices of one shape and layout share their
launches. The block Y = A Omega is orthonormalised to Q; B^T = A^T Q = V R by the same means, and
the small R = P S W^T gives U = Q W and V P. The singular value decomposition of R is that of the
backend of ``svd``, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.rsvd import torch_backend, triton_launch
from spectral_kernels.rsvd.normals import Sketch
from spectral_kernels.rsvd.triton_launch import WIDEST, Batch
from spectral_kernels.runtime import dispatch, numerics

BAD_BITS = 0x7F800000
# is_ordinary of triton_kernels.py: bits of 2^-60 and 2^60.
_ORDINARY_BITS = (67 << 23, 187 << 23)


def rsvd(sketches: list[Sketch], seed: int, power_iters: int) -> list[SVD]:
    """Return k leading triplets of each matrix.

    float64 matrices, for which Gram matrices in float64 would lose values below 1e-8 sigma_1, and
    blocks wider than ``WIDEST`` columns are for plain torch.
    """
    results: dict[int, SVD] = {}
    groups: dict[tuple[object, ...], list[Sketch]] = {}
    for x in sketches:
        if x.A.dtype == torch.float64 or x.width > WIDEST or x.A.numel() == 0:
            results |= {x.number: torch_backend.rsvd([x], seed, power_iters)[0]}
        else:
            key = (x.A.shape, x.A.stride(), x.A.dtype, x.k, x.width, x.start.shape[-1])
            groups.setdefault(key, []).append(x)
    for members in groups.values():
        svds = _solve(members, seed, power_iters)
        results |= {x.number: svd for x, svd in zip(members, svds, strict=True)}
    return [results[x.number] for x in sketches]


def _solve(sketches: list[Sketch], seed: int, power_iters: int) -> list[SVD]:
    """Return the triplets of matrices of one shape and layout, with as many columns given."""
    A, _, k, width, _ = sketches[0]
    *shape, _, n = A.shape
    batch = Batch.of([x.A for x in sketches], [x.number for x in sketches])
    count = len(batch) // len(sketches)
    given = torch.cat([x.start.reshape(count, n, x.start.shape[-1]) for x in sketches])
    largest = torch.zeros(len(batch), dtype=torch.int32, device=given.device)
    Y = triton_launch.product(batch, given, largest, True, width, seed=seed, random=True)
    for _ in range(power_iters):
        Q, _ = triton_launch.orthonormalise(Y, 1, seed)
        Z = triton_launch.product(batch, Q, largest, False, width, transposed=True)
        Q, _ = triton_launch.orthonormalise(Z, 1, seed)
        Y = triton_launch.product(batch, Q, largest, False, width)
    Q, _ = triton_launch.orthonormalise(Y, 2, seed)
    B = triton_launch.product(batch, Q, largest, False, width, transposed=True)
    V, R = triton_launch.orthonormalise(B, 2, seed)
    P, S, Wh = dispatch.backend("svd", R.device.type).svd([R])[0]
    Ut = triton_launch.apply(Q[:, None], Wh.mT[..., :k], fill=False, by_columns=True)
    Vh = triton_launch.apply(V[:, None], P[..., :k], fill=False, by_columns=True)
    Ut, S, Vh = _finish(Ut, S[:, :k], Vh, largest)
    parts = (x.reshape(len(sketches), *shape, *x.shape[1:]).unbind(0) for x in (Ut, S, Vh))
    return [SVD(ut.mT, s, vh) for ut, s, vh in zip(*parts, strict=True)]


def _finish(Ut: Tensor, S: Tensor, Vh: Tensor, largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Undo the scale, fix signs, and write NaN where the matrix had NaN or Inf."""
    bad = (largest >= BAD_BITS)[:, None]
    pivot = Ut.gather(-1, Ut.abs().argmax(dim=-1, keepdim=True))[..., 0]
    sign = torch.where(pivot < 0, -1.0, 1.0).masked_fill(bad, float("nan"))[..., None]
    values = (S * unscale(largest)[:, None]).to(torch.float32).masked_fill(bad, float("nan"))
    return Ut * sign, values, Vh * sign


def unscale(largest: Tensor) -> Tensor:
    """Return the reciprocal of what the products were scaled by, float64 (B,)."""
    low, high = _ORDINARY_BITS
    ordinary = (largest == 0) | ((largest >= low) & (largest < high)) | (largest >= BAD_BITS)
    exponent = (254 - (largest >> 23)).clamp_min(1) - 127
    return torch.where(ordinary, 1.0, numerics.power_of_two(-exponent, torch.float64))
