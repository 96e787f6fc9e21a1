"""Plain torch, on any device: what runs without the compiled module and beyond its sizes.

Values of float32 matrices come from a Gram matrix of the smaller side in float64: an error of
about 1e-8 sigma_1, below the 1e-6 of LAPACK in float32, and one product instead of a
bidiagonalisation of the longer side. Float64 matrices go to ``torch.linalg``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import numerics
from spectral_kernels.runtime.schemas import new_triplets


def svdvals(matrices: list[Tensor]) -> list[Tensor]:
    """Return the singular values (..., r) of each matrix (..., m, n)."""
    return [_svdvals(A) for A in matrices]


def svd(matrices: list[Tensor]) -> list[SVD]:
    """Return the thin SVD of each matrix (..., m, n)."""
    return [_svd(A) for A in matrices]


def svd_waits(m: int, n: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ``svd`` of (m, n) matrices makes the host wait for the device."""
    return device.type != "cpu"


def _svdvals(A: Tensor) -> Tensor:
    dtype = numerics.result_dtype(A.dtype)
    if A.numel() == 0:
        return A.new_empty((*A.shape[:-2], min(A.shape[-2:])), dtype=dtype)
    if dtype == torch.float32:
        S, bad = _gram_values(A)
    else:
        scaled, exponent, bad = numerics.normalize(A)
        S = numerics.scale(torch.linalg.svdvals(scaled), exponent[..., None])
    return numerics.poison(S, bad)


def _gram_values(A: Tensor) -> tuple[Tensor, Tensor]:
    # No scaling: the squares of float32's whole range, 1e-90 to 1e77, are normal in float64.
    A, bad, _ = numerics.finite_matrices(A)
    A = A.double()
    gram = A @ A.mT if A.shape[-2] <= A.shape[-1] else A.mT @ A
    eigenvalues = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0.0)
    return eigenvalues.sqrt().float(), bad


def _svd(A: Tensor) -> SVD:
    A = A.to(numerics.result_dtype(A.dtype))
    if A.numel() == 0:
        return SVD(*new_triplets(A, min(A.shape[-2:])))
    scaled, exponent, bad = numerics.normalize(A)
    U, S, Vh = torch.linalg.svd(scaled, full_matrices=False)
    U, Vh = numerics.fix_signs(U, Vh)
    if A.dtype == torch.float32:
        # LAPACK's own are off by 10 eps sigma_1 at side 24 and by 30 at 1024: more than callers
        # are told.
        S = _gram_values(scaled)[0]
    S = numerics.scale(S, exponent[..., None])
    U, S, Vh = (numerics.poison(x, bad) for x in (U, S, Vh))
    return SVD(numerics.by_columns(U), S.contiguous(), Vh.contiguous())
