"""What the certificate of ``tracking/bounds.py`` is made from, for S = W^T W of W = X V.

S (B, r, r) float64, s_j = sqrt(S_jj), c_ij = S_ij / (s_i s_j) for leading i != j.

``lengths``   a program a matrix: the diagonal, 8 r bytes in r sectors.
``row_sums``  a program ROWS rows: sum |c_ij|, c_ij^2 and c_ij^2 s_j^2, and the sum of |t_ij|, the
              tangents of the rotation that would follow. S is read once, 8 r^2 bytes; a square
              root and three divisions for each entry.

What they prove is in ``triton_verdict_kernels.py``. Everything is float64. Sums of r non-negative
terms are off by r u at most; they are rounded up by more. A program leaves at once where its matrix
was not asked to turn, except in the FIRST round.
"""

# Device code is no Python: Triton's compiler reads it.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.tracking.whole.triton_tangent_kernels import real, tangents

# Columns below this part of sigma_1 count by their norm alone: _LEADING in bounds.py.
LEADING = tl.constexpr(1e-7)
UNIT = tl.constexpr(2.0**-53)
UP = tl.constexpr(1.0 + 1e-12)

# Rows of ``sums`` (B, 6, r).
COSINES = tl.constexpr(0)
SQUARES = tl.constexpr(1)
WEIGHTED = tl.constexpr(2)
TANGENTS = tl.constexpr(3)
DEPARTURES = tl.constexpr(4)
DEPARTURE_SQUARES = tl.constexpr(5)
SUMS = tl.constexpr(6)

# Columns of ``proved`` (B, 8).
COSINE = tl.constexpr(0)
ADDITIVE = tl.constexpr(1)
DRIFT = tl.constexpr(2)
TAIL = tl.constexpr(3)
TOP = tl.constexpr(4)
ROUNDING = tl.constexpr(5)
ERROR_NORM = tl.constexpr(6)
NORM = tl.constexpr(7)
PROVED = tl.constexpr(8)


@triton.jit
def gamma(n):
    """Return what n roundings in a row amount to (Higham 2002, Section 3.1)."""
    all_of_them = real(n) * UNIT
    return all_of_them / (1.0 - all_of_them)


@triton.jit
def lengths(
    asked_ptr, gram_ptr, values_ptr, proved_ptr, r, FIRST: tl.constexpr, BLOCK: tl.constexpr
):
    """values (B, r); of proved: the largest value, NaN where not finite, norm and tail."""
    batch = tl.program_id(0).to(tl.int64)
    if not FIRST:  # noqa: SIM102  (Triton evaluates both sides of "and")
        if tl.load(asked_ptr + batch) == 0:
            return
    top = tl.full((BLOCK,), 0.0, tl.float64)
    total = tl.full((BLOCK,), 0.0, tl.float64)
    for start in range(0, r, BLOCK):
        j = (start + tl.arange(0, BLOCK)).to(tl.int64)
        square = tl.load(gram_ptr + (batch * r + j) * r + j, mask=j < r, other=0.0)
        # NaN stays in the total, if not in the maximum.
        total += square
        square = tl.maximum(square, 0.0)
        top = tl.maximum(top, square)
        tl.store(values_ptr + batch * r + j, tl.sqrt(square), mask=j < r)
    largest = tl.sqrt(tl.max(top, 0))
    trace = tl.sum(total, 0)
    tail = tl.full((BLOCK,), 0.0, tl.float64)
    for start in range(0, r, BLOCK):
        j = (start + tl.arange(0, BLOCK)).to(tl.int64)
        square = tl.load(gram_ptr + (batch * r + j) * r + j, mask=j < r, other=0.0)
        square = tl.maximum(square, 0.0)
        tail += tl.where(tl.sqrt(square) > LEADING * largest, 0.0, square)
    finite = (trace >= 0) & (trace < float("inf"))
    proved = proved_ptr + batch * PROVED
    tl.store(proved + TOP, tl.where(finite, largest, float("nan")))
    tl.store(proved + NORM, tl.sqrt(tl.maximum(trace, 0.0)) * UP)
    tl.store(proved + TAIL, tl.sqrt(tl.sum(tail, 0)) * UP)


@triton.jit
def row_sums(
    asked_ptr,
    gram_ptr,
    values_ptr,
    proved_ptr,
    sums_ptr,
    r,
    long,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """sums (B, 6, r): the first four; ``long`` is M, the depth of S."""
    blocks = (r + ROWS - 1) // ROWS
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    if not FIRST:  # noqa: SIM102  (Triton evaluates both sides of "and")
        if tl.load(asked_ptr + batch) == 0:
            return
    i = (tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    top = tl.load(proved_ptr + batch * PROVED + TOP)
    s_i = tl.load(values_ptr + batch * r + i, mask=i < r, other=0.0)
    leading_i = s_i > LEADING * top
    cosines = tl.full((ROWS,), 0.0, tl.float64)
    squares = tl.full((ROWS,), 0.0, tl.float64)
    weighted = tl.full((ROWS,), 0.0, tl.float64)
    turns = tl.full((ROWS,), 0.0, tl.float64)
    for start in range(0, r, COLUMNS):
        j = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        inside = (i < r)[:, None] & (j < r)[None, :]
        g = tl.load(gram_ptr + (batch * r + i[:, None]) * r + j[None, :], mask=inside, other=0.0)
        s_j = tl.load(values_ptr + batch * r + j, mask=j < r, other=0.0)
        leading = leading_i[:, None] & (s_j > LEADING * top)[None, :]
        off = i[:, None] != j[None, :]
        c = g / tl.where(leading, s_i[:, None], 1.0) / tl.where(leading, s_j[None, :], 1.0)
        c = tl.where(leading & off, c, 0.0)
        cosines += tl.sum(tl.abs(c), 1)
        squares += tl.sum(c * c, 1)
        weighted += tl.sum(c * c * (s_j * s_j)[None, :], 1)
        t = tangents(g, s_i, s_j, long)
        turns += tl.sum(tl.abs(tl.where(off, t, 0.0)), 1)
    rows = sums_ptr + batch * SUMS * r + i
    tl.store(rows + COSINES * r, cosines, mask=i < r)
    tl.store(rows + SQUARES * r, squares, mask=i < r)
    tl.store(rows + WEIGHTED * r, weighted, mask=i < r)
    tl.store(rows + TANGENTS * r, turns, mask=i < r)
