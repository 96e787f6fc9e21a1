r"""Float32 matrices beyond shared memory: eigenvalues of a Gram matrix in float64.

With G = A^T A = V diag(lambda) V^T in float64 (A the way round that has m >= n), sigma_i =
sqrt(lambda_i) is off by at most a few 1e-16 sigma_1^2 / sigma_i, and never by more than 1e-8
sigma_1 times a small factor: below float32's own 6e-8.

The vectors. W = A V in float64 has columns that are orthogonal up to rounding,
|w_i . w_j| <= c eps sigma_1^2 with eps = 1.1e-16, so for large sigma they need only be divided by
their lengths. For sigma below sqrt(eps) sigma_1 they point anywhere. Householder's W = Q R answers
both without asking which is which: Q is orthonormal whatever W is, zero columns completed, and

    A = W V^T = Q R V^T,   |r_ij| = |q_i . w_j| <~ min(c eps sigma_1^2 / sigma_i, |w_j|)  for i < j,

so leaving out everything right of R's diagonal changes A by at most about
min(eps sigma_1^2 / sigma_i, sigma_i) <= sqrt(eps) sigma_1 = 1e-8 sigma_1 in each place, again
below float32's rounding. Hence U = Q with the signs of the diagonal, S = |r_ii|. No number is read
by the host to decide anything here; torch's eigenvalue solver itself checks its success there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.products.gram import gram
from spectral_kernels.runtime import numerics


def svdvals(A: Tensor) -> Tensor:
    """Return the singular values (..., r) float32 of A (..., m, n), float32 or less, not empty."""
    G, bad = _finite(gram(A))
    S = torch.linalg.eigvalsh(G).flip(-1).clamp_min(0.0).sqrt().float()
    return _poison(S, bad)


def svd(A: Tensor) -> SVD:
    """Return the thin SVD, float32, of A (..., m, n), float32 or less, not empty.

    The largest entry of each u is positive; a matrix with NaN or Inf gives NaN for itself alone.
    """
    if A.shape[-2] < A.shape[-1]:
        right = svd_tall(A.mT)
        U, Vh = right.Vh.mT, right.U.mT
    else:
        U, _, Vh = right = svd_tall(A)
    U, Vh = numerics.fix_signs(U, Vh)
    return SVD(numerics.by_columns(U), right.S, Vh.contiguous())


def svd_tall(A: Tensor) -> SVD:
    """Return U (..., m, n), S, Vh of A (..., m, n) with m >= n; signs as they come."""
    largest = torch.linalg.vector_norm(A, float("inf"), dim=(-2, -1))
    bad = ~torch.isfinite(largest)
    A = torch.where(bad[..., None, None], 0.0, A)
    V = torch.linalg.eigh(gram(A)).eigenvectors.flip(-1)
    Q, R = torch.linalg.qr(A.double() @ V)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    Q = Q * torch.where(diagonal < 0, -1.0, 1.0).unsqueeze(-2)
    # Within sqrt(eps) sigma_1 of each other they need not fall.
    S, order = diagonal.abs().sort(dim=-1, descending=True)
    Q = Q.gather(-1, order.unsqueeze(-2).expand(Q.shape))
    Vh = V.mT.gather(-2, order.unsqueeze(-1).expand(V.shape))
    return SVD(*(_poison(x.float(), bad) for x in (Q, S, Vh)))


def _finite(G: Tensor) -> tuple[Tensor, Tensor]:
    """Zero the Gram matrices that are not finite, on which solvers raise; and say which."""
    trace = G.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    bad = ~torch.isfinite(trace)
    return torch.where(bad[..., None, None], 0.0, G), bad


def _poison(x: Tensor, bad: Tensor) -> Tensor:
    return torch.where(bad.reshape(bad.shape + (1,) * (x.dim() - bad.dim())), float("nan"), x)
