"""Cores by torch's products and LAPACK, layers of one shape together, on any device; see op.py."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.core.op import Core, core_dtype
from spectral_kernels.entry.core.triangles import (
    Triangle,
    as_it_is,
    by_cholesky,
    by_householder,
    gamma,
)
from spectral_kernels.entry.results import Decomposed
from spectral_kernels.runtime import numerics

# Two departures of this size move a float32 value by 8 eps.
_DEPARTURE = 8 * torch.finfo(torch.float32).eps
# Exponents of three factors together, held to what two halves can be.
_EXPONENTS = 2040
# Of numbers below the normal range.
_SMALLEST = {torch.float32: 2.0**-149, torch.float64: 2.0**-1074}


def cores(factors: list[Decomposed], vectors: list[bool]) -> list[Core]:
    """Return the core of each U (..., m, k), Sigma (..., k, k), Vh (..., k, n)."""
    groups: dict[object, list[int]] = {}
    for i, (x, with_vectors) in enumerate(zip(factors, vectors, strict=True)):
        key = (x.U.shape[-2:], x.Vh.shape[-2:], core_dtype(x), with_vectors)
        groups.setdefault(key, []).append(i)
    results: dict[int, Core] = {}
    for indices in groups.values():
        computed = _together([factors[i] for i in indices], vectors[indices[0]])
        results.update(zip(indices, computed, strict=True))
    return [results[i] for i in range(len(factors))]


def _together(members: list[Decomposed], vectors: bool) -> list[Core]:
    """Return the cores of factors of one shape."""
    U, Sigma, Vh = (torch.cat([_flat(x) for x in part]) for part in zip(*members, strict=True))
    empty = U.numel() == 0 or Vh.numel() == 0
    computed = (_nothing if empty else _cores)(U, Sigma, Vh, core_dtype(members[0]), vectors)
    batches = [x.U.shape[:-2] for x in members]
    parts = [torch.split(field, [b.numel() for b in batches]) for field in computed]
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
    triangle = by_cholesky(U, basis=basis)
    # False for NaN, too.
    lost = ~(triangle.departure <= _DEPARTURE)
    if not bool(lost.any()):
        return triangle
    again = by_householder(U[lost])
    for field, better in zip(triangle, again, strict=True):
        if field is not None and better is not None:
            field[lost] = better
    return triangle


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
