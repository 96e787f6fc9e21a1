"""Directions for singular values that are zero or rounding, where the product gives none.

They go on from those they had: the rows q of Q (r, M) that no column of W fills keep what was there
before, made orthogonal again to the others, which have turned a little since. With K = Q Q^T, rows
l that come from W and rows z that stayed,

    q_z <- q_z - sum_l K_zl q_l - 1/2 sum_z' (K_zz' - delta_zz') q_z',

a projection and a Newton-Schulz step at once, and then to length one: what was wrong by d is wrong
by d^2 after it. Coefficients and product are taken only of matrices with such rows: 4 M r^2
operations, none for others.
"""

# Device code is no Python: Triton's compiler reads it.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def coefficients(incomplete_ptr, factors_ptr, gram_ptr, r, SIDE: tl.constexpr):
    """gram (B, r, r): K on entry, the coefficients of the formula on exit."""
    across = (r + SIDE - 1) // SIDE
    batch = (tl.program_id(0) // (across * across)).to(tl.int64)
    tile = tl.program_id(0) % (across * across)
    if tl.load(incomplete_ptr + batch) == 0:
        return
    i = (tile // across * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    j = (tile % across * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    inside = (i < r)[:, None] & (j < r)[None, :]
    # A factor above zero: a column of W.
    stays_i = tl.load(factors_ptr + batch * r + i, mask=i < r, other=1.0) <= 0
    stays_j = tl.load(factors_ptr + batch * r + j, mask=j < r, other=1.0) <= 0
    place = gram_ptr + (batch * r + i[:, None]) * r + j[None, :]
    k = tl.load(place, mask=inside, other=0.0)
    one = tl.where(i[:, None] == j[None, :], 1.0, 0.0)
    found = tl.where(stays_j[None, :], one - 0.5 * (k - one), -k)
    tl.store(place, tl.where(stays_i[:, None], found, 0.0), mask=inside)


@triton.jit
def write_back(incomplete_ptr, factors_ptr, new_ptr, out_ptr, r, long, BLOCK: tl.constexpr):
    """new (B, r, M) float64, out (B, r, M): a program a row, in two passes over it."""
    batch = (tl.program_id(0) // r).to(tl.int64)
    if tl.load(incomplete_ptr + batch) == 0:
        return
    row = tl.program_id(0).to(tl.int64)
    if tl.load(factors_ptr + row) > 0:
        return
    total = tl.full((BLOCK,), 0.0, tl.float64)
    for start in range(0, long, BLOCK):
        at = (start + tl.arange(0, BLOCK)).to(tl.int64)
        x = tl.load(new_ptr + row * long + at, mask=at < long, other=0.0)
        total += x * x
    norm = tl.sqrt(tl.sum(total, 0))
    # An axis that lies in the span of the others: it stays as it is.
    if norm == 0:
        return
    for start in range(0, long, BLOCK):
        at = (start + tl.arange(0, BLOCK)).to(tl.int64)
        x = tl.load(new_ptr + row * long + at, mask=at < long, other=0.0) / norm
        tl.store(out_ptr + row * long + at, x.to(out_ptr.dtype.element_ty), mask=at < long)
