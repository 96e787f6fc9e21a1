r"""Triangular factors of thin matrices, each with a proof of its error.

A factor U (m, k) with m >= k stands as U = W R + E: R (k, k) upper triangular with a diagonal >= 0,
W (m, k) nearly orthonormal, E nearly zero. Two numbers tell how nearly, with d_j the length of
column j of U:

    departure >= ||W^T W - I||_2        residual >= ||E diag(d)^-1||_F

All products are taken in float64, where a computed product of depth n is within gamma_n |Y| |Z|,
entry by entry and in whatever order it is summed (Higham 2002, Section 3.1), and

    gamma_n = n u / (1 - n u),  u = 2^-53.

Nothing else is assumed: what LAPACK returns is measured, not trusted.

`by_cholesky`: R^T R = U^T U + F. Of G, the computed U^T U, and the measured difference

    |R^T R - G|_ij <= phi d_i d_j,     so |F_ij| <= g d_i d_j,   g = phi + gamma_m + gamma_(k+2).

With W = U R^-1 then E = 0, W^T W - I = -R^-T F R^-1, and its norm is at most g ||d^T |R^-1| ||^2.
The inverse is known as X with R X = I - Delta: R^-1 = X (I - Delta)^-1, hence

    departure = g s^2,   s = ||d^T |X| ||_2 / (1 - delta),   delta >= || |Delta| ||_F

for a measured delta, whose rounding is gamma_(k+1) || |R| |X| ||_F <= gamma_(k+1) sqrt(k) s. It
does not matter how columns are scaled; it does matter, squared, how dependent they are.

`by_householder`: W = Q. E = U - Q R and Q^T Q - I are measured; rounding adds at most
gamma_(k+2) (1 + ||Q||_F) d_j to a column of E and gamma_(m+1) ||q_i|| ||q_j|| to an entry of the
other. It does not matter how dependent columns are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Covers the rounding of the bounds themselves, sums of at most 2^30 positive numbers.
_SAFETY = 1.0 + 2.0**-20


class Triangle(NamedTuple):
    """U = W R + E for a batch (B, m, k), float64.

    ``R`` (B, p, k), p = min(m, k); ``W`` (B, m, p), or None where it was not asked for;
    ``departure`` and ``residual`` (B,), NaN or infinite where there is no proof; ``lengths``
    (B, k), at least the lengths of the columns of U and of R.
    """

    R: Tensor
    W: Tensor | None
    departure: Tensor
    residual: Tensor
    lengths: Tensor


def by_cholesky(U: Tensor, *, basis: bool) -> Triangle:
    """Return the triangle of U (B, m, k), m >= k, from its Gram matrix.

    Columns that are dependent or zero give a departure that is NaN, infinite or large.
    """
    m, k = U.shape[-2:]
    eye = torch.eye(k, dtype=U.dtype, device=U.device)
    G = U.mT @ U
    R = torch.linalg.cholesky_ex(G, upper=True).L
    X = torch.linalg.solve_triangular(R, eye, upper=True)
    d = _SAFETY * G.diagonal(dim1=-2, dim2=-1).sqrt()
    phi = ((R.mT @ R - G) / d.unsqueeze(-1) / d.unsqueeze(-2)).abs().amax(dim=(-2, -1))
    g = phi + gamma(m) + gamma(k + 2)
    sums = torch.linalg.vector_norm((d.unsqueeze(-2) @ X.abs()).squeeze(-2), dim=-1)
    delta = torch.linalg.matrix_norm(eye - R @ X) + gamma(k + 1) * math.sqrt(k) * sums
    s = sums / (1.0 - delta).clamp_min(0.0)
    departure = _SAFETY * g * s.square()
    return Triangle(R, U @ X if basis else None, departure, torch.zeros_like(departure), d)


def by_householder(U: Tensor) -> Triangle:
    """Return the triangle of any U (B, m, k), m >= k; W is orthonormal even where R is singular."""
    m, k = U.shape[-2:]
    Q, R = torch.linalg.qr(U)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    Q, R = Q * signs.unsqueeze(-2), R * signs.unsqueeze(-1)
    column = torch.linalg.vector_norm
    d = _SAFETY * torch.maximum(column(U, dim=-2), column(R, dim=-2))
    # A column that is zero in U and in R has no residual.
    relative = column(U - Q @ R, dim=-2) / torch.where(d > 0, d, 1.0)
    eye = torch.eye(k, dtype=U.dtype, device=U.device)
    departure = torch.linalg.matrix_norm(Q.mT @ Q - eye) + 1.01 * k * gamma(m + 1)
    rounding = 1.01 * gamma(k + 2) * (1.0 + math.sqrt(k)) * math.sqrt(k)
    residual = column(relative, dim=-1) + rounding
    return Triangle(R, Q, _SAFETY * departure, _SAFETY * residual, d)


def as_it_is(U: Tensor) -> Triangle:
    """Return U (B, m, k) with m <= k as its own R, with W = I: exact."""
    *batch, m, _ = U.shape
    W = torch.eye(m, dtype=U.dtype, device=U.device).expand(*batch, m, m)
    nothing = U.new_zeros(batch)
    return Triangle(U, W, nothing, nothing, _SAFETY * torch.linalg.vector_norm(U, dim=-2))


def gamma(n: int) -> float:
    """Return Higham's gamma_n of float64."""
    u = torch.finfo(torch.float64).eps / 2
    return n * u / (1.0 - n * u)
