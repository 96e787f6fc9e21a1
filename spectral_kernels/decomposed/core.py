r"""The core of U Sigma Vh: a small matrix with the same singular values, without the m x n one.

With U = W_u R_u and Vh^T = W_v R_v (`triangles`) the core is C = R_u Sigma R_v^T (p, q), p =
min(m, k), q = min(k, n), and U Sigma Vh = W_u C W_v^T: for orthonormal W_u and W_v it has the
singular values of C, and its vectors are W_u and W_v times those of C. Diagonals of R_u and R_v are
positive, which makes C a continuous function of the factors: a tracker can follow it.

What is proved of the vector sigma of the singular values of U Sigma Vh, for W and E as they are. By
Ostrowski's theorem (Horn, Johnson, Matrix Analysis, 4.5.9) each singular value of W_u C W_v^T is
one of C times a number within sqrt((1 +- f_u)(1 +- f_v)), f the departures; and |sqrt(1 +- f) - 1|
<= h = f (1 + f) / 2. By Mirsky's theorem what is added to a matrix moves the vector of its singular
values by no more than its Frobenius norm. With z = d_u^T |Sigma| d_v, which is at least the
Frobenius norm of diag(d_u) Sigma R_v^T, of R_u Sigma diag(d_v) and of |R_u| |Sigma| |R_v^T|, and e
the residuals,

    ||sigma - sigma(C)||_2 <= ((1 + h_u)(1 + h_v) - 1) ||C||_F        W_u and W_v
                            + (e_u (1 + h_v) + e_v (1 + h_u) + e_u e_v) z      E_u and E_v
                            + (1 + h_u)(1 + h_v) (gamma_(2k+2) z + rounding of C to its type).

Float32 and narrower factors take the Gram matrices where these prove values within 8 eps of
float32, and Householder's QR where not; float64 factors always the latter, since a Gram matrix
loses half the digits. Each costs about k^2 (m + n) operations more than it saves: m n k are saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels import numerics
from spectral_kernels.decomposed.triangles import (
    Triangle,
    as_it_is,
    by_cholesky,
    by_householder,
    gamma,
)
from spectral_kernels.numerics import result_dtype
from spectral_kernels.results import SVD, Decomposed

# Two departures of this size move a float32 value by 8 eps.
_DEPARTURE = 8 * torch.finfo(torch.float32).eps
# Exponents of three factors together, held to what two halves can be.
_EXPONENTS = 2040
# Of numbers below the normal range.
_SMALLEST = {torch.float32: 2.0**-149, torch.float64: 2.0**-1074}


class Core(NamedTuple):
    """A small matrix with the singular values of U Sigma Vh, and the way back.

    ``matrix`` (..., p, q), p = min(m, k), q = min(k, n), continuous in the factors; ``error`` (...)
    float64, a bound of the 2-norm of the differences of all singular values; ``left`` (..., m, p)
    with orthonormal columns and ``right`` (..., q, n) with orthonormal rows, of no columns and no
    rows where vectors were not asked for. Float64 where a factor is, else float32.
    """

    matrix: Tensor
    error: Tensor
    left: Tensor
    right: Tensor


def cores(factors: Sequence[Decomposed], *, vectors: bool | Sequence[bool]) -> list[Core]:
    """Return the core of each U (..., m, k), Sigma (..., k, k), Vh (..., k, n) of tensors.

    Layers of one shape are taken together. A matrix with NaN or Inf in a factor, or with a core
    beyond the range of its type, is NaN throughout, and others are what they are without it.
    Without gradients. Waits for a GPU, to find out which matrices need Householder's QR.

    Args:
        factors: on one device, unchecked, of any floating dtypes and strides.
        vectors: whether ``left`` and ``right`` are wanted, one answer or one for each.
    """
    wanted = [vectors] * len(factors) if isinstance(vectors, bool) else list(vectors)
    groups: dict[object, list[int]] = {}
    for i, (x, with_vectors) in enumerate(zip(factors, wanted, strict=True)):
        key = (x.U.shape[-2:], x.Vh.shape[-2:], _dtype(x), x.U.device, with_vectors)
        groups.setdefault(key, []).append(i)
    results: dict[int, Core] = {}
    with torch.no_grad():
        for indices in groups.values():
            members = [factors[i] for i in indices]
            found = _together(members, wanted[indices[0]])
            results.update(zip(indices, found, strict=True))
    return [results[i] for i in range(len(factors))]


def lift(core: Core, svd: SVD, out: SVD | None = None) -> SVD:
    """Return the singular vectors of U Sigma Vh from those of its core; S is that of ``svd``.

    Args:
        core: with vectors.
        svd: (..., p, t), (..., t), (..., t, q) of ``core.matrix``, t triplets.
        out: where to write; fields of the shapes (..., m, t), (..., t), (..., t, n).
    """
    if out is None:
        # Left vectors lie by columns, in every result of the library.
        return SVD(
            _lifted(svd.U.mT, core.left.mT, None).mT, svd.S, _lifted(svd.Vh, core.right, None)
        )
    _lifted(svd.U.mT, core.left.mT, out.U.mT)
    _lifted(svd.Vh, core.right, out.Vh)
    out.S.copy_(svd.S)
    return out


def _lifted(rows: Tensor, basis: Tensor, out: Tensor | None) -> Tensor:
    """Return rows @ basis, a copy at most where the basis is square and so the identity."""
    if basis.shape[-1] != basis.shape[-2]:
        return torch.matmul(rows, basis, out=out)
    if out is None or out.data_ptr() == rows.data_ptr():
        return rows
    return out.copy_(rows)


def _dtype(x: Decomposed) -> torch.dtype:
    """Return the type of the core, which is that of ``recompose``."""
    return result_dtype(torch.promote_types(x.U.dtype, x.Vh.dtype))


def _together(members: list[Decomposed], vectors: bool) -> list[Core]:
    """Return the cores of factors of one shape."""
    U, Sigma, Vh = (torch.cat([_flat(x) for x in part]) for part in zip(*members, strict=True))
    empty = U.numel() == 0 or Vh.numel() == 0
    found = (_nothing if empty else _cores)(U, Sigma, Vh, _dtype(members[0]), vectors)
    batches = [x.U.shape[:-2] for x in members]
    parts = [torch.split(field, [b.numel() for b in batches]) for field in found]
    return [
        Core(*(part.reshape((*batch, *part.shape[1:])) for part in one))
        for batch, *one in zip(batches, *parts, strict=True)
    ]


def _cores(U: Tensor, Sigma: Tensor, Vh: Tensor, dtype: torch.dtype, vectors: bool) -> Core:
    """Return the cores of one batch (B, ...) of float64 factors."""
    U, u_exponent, u_bad = _finite(U, dtype)
    Sigma, s_exponent, s_bad = _finite(Sigma, dtype)
    Vh, v_exponent, v_bad = _finite(Vh, dtype)
    exact = dtype == torch.float64
    left, right = (_triangle(x, exact=exact, basis=vectors) for x in (U, Vh.mT))
    matrix = left.R @ Sigma @ right.R.mT
    error = _error(matrix, left, Sigma, right)
    is_zero = ~matrix.flatten(1).any(dim=-1)
    exponent = (u_exponent + s_exponent + v_exponent).clamp(-_EXPONENTS, _EXPONENTS)
    if exact:
        matrix = numerics.scale(matrix, exponent[:, None, None])
        error = numerics.scale(error, exponent)
    narrow = matrix.to(dtype)
    # A zero matrix loses nothing.
    error = error + _narrowing(narrow).masked_fill(is_zero, 0.0)
    bad = u_bad | s_bad | v_bad | ~narrow.isfinite().flatten(1).all(dim=-1)
    bases = [x.W for x in (left, right)] if vectors else [U[..., :0], Vh.mT[..., :0]]
    W_u, W_v = (W.to(dtype) for W in bases if W is not None)
    fields = (narrow, error, W_u, W_v.mT)
    return Core(*(numerics.poison(field, bad) for field in fields))


def _flat(x: Tensor) -> Tensor:
    """Return x (..., a, b) as (B, a, b) float64."""
    # Not -1, which says nothing where there are no entries.
    return x.double().reshape(x.shape[:-2].numel(), *x.shape[-2:])


def _nothing(U: Tensor, Sigma: Tensor, Vh: Tensor, dtype: torch.dtype, vectors: bool) -> Core:
    """Return the cores of matrices without entries, or without rank."""
    (count, m, k), n = U.shape, Vh.shape[-1]
    p, q = min(m, k), min(k, n)
    left = torch.eye(m, p if vectors else 0, dtype=dtype, device=U.device)
    right = torch.eye(q if vectors else 0, n, dtype=dtype, device=U.device)
    matrix, error = U.new_zeros((count, p, q), dtype=dtype), U.new_zeros(count)
    return Core(matrix, error, left.expand(count, -1, -1), right.expand(count, -1, -1))


def _finite(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (B, ...) scaled so that squares do not overflow, exponents (B,), and who is bad."""
    if dtype == torch.float64:
        return numerics.normalize(x)
    # The whole range of float32, 1e-45 to 1e38, is within that of float64 to the sixth power.
    x, bad, largest = numerics.finite_matrices(x)
    return x, torch.zeros_like(largest, dtype=torch.int32), bad


def _triangle(U: Tensor, *, exact: bool, basis: bool) -> Triangle:
    if U.shape[-2] <= U.shape[-1]:
        return as_it_is(U)
    if exact:
        return by_householder(U)
    found = by_cholesky(U, basis=basis)
    # False for NaN, too.
    lost = ~(found.departure <= _DEPARTURE)
    if not bool(lost.any()):
        return found
    again = by_householder(U[lost])
    for field, better in zip(found, again, strict=True):
        if field is not None and better is not None:
            field[lost] = better
    return found


def _error(matrix: Tensor, left: Triangle, Sigma: Tensor, right: Triangle) -> Tensor:
    """Return the bound (B,) for cores (B, p, q) in float64."""
    h_u, h_v = (0.5 * x.departure * (1.0 + x.departure) for x in (left, right))
    e_u, e_v = left.residual, right.residual
    z = (left.lengths.unsqueeze(-2) @ Sigma.abs() @ right.lengths.unsqueeze(-1)).flatten(-2)[:, 0]
    stretch = h_u + h_v + h_u * h_v
    residual = e_u * (1.0 + h_v) + e_v * (1.0 + h_u) + e_u * e_v
    rounding = (1.0 + stretch) * gamma(2 * Sigma.shape[-1] + 2)
    bound: Tensor = stretch * torch.linalg.matrix_norm(matrix) + (residual + rounding) * z
    return bound * (1.0 + 2.0**-20)


def _narrowing(matrix: Tensor) -> Tensor:
    """Return a bound (B,) of the Frobenius norm of what rounding to the type of the core did."""
    p, q = matrix.shape[-2:]
    info = torch.finfo(matrix.dtype)
    rounded = 0.0 if matrix.dtype == torch.float64 else 0.51 * info.eps
    below = (p * q) ** 0.5 * _SMALLEST[matrix.dtype]
    norm: Tensor = torch.linalg.matrix_norm(matrix.double())
    bound: Tensor = rounded * norm + below
    return bound
