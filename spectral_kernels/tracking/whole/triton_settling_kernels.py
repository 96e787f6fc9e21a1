"""Columns of W = X V that are not orthonormal over their norms, made so: see tracked_vectors.h.

Rows q of Q (B, r, M) are in the order of descending values. From K = Q Q^T:

``first_doubt``  the first row j with 2 sum_{k <= j, l < k} K_kl^2 > KEPT^2, or where there is one
                 the first that W does not give: those before stand. A program a matrix, 8 r^2
                 bytes.
``settle``       the rows from there on, in order, made orthogonal to those before them by passes
                 x <- x - Q^T (Q x), until one takes next to nothing; what has no direction of its
                 own gets one from the axis that the others cover least. A program a matrix, since
                 a row waits for all before it: two reads of Q and 4 M r operations a pass, of which
                 two to three are the rule.

An x of a value s moves by s times its cosines, which the bounds allow. Sums are float64, whatever Q
is. Matrices without doubt cost a load.
"""

# Device code is no Python: Triton's compiler reads it.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

# ||C||_F of the cosines of vectors that are taken for orthonormal as they are: kCosinesKept.
KEPT = tl.constexpr(0.02)
# What is left of a vector in the span of others: kNothingLeft.
NOTHING_LEFT = tl.constexpr(1e-9)
# A pass that leaves so much was the last.
ENOUGH = tl.constexpr(0.999)
PASSES = tl.constexpr(12)


@triton.jit
def first_doubt(
    doubtful_ptr,
    incomplete_ptr,
    factors_ptr,
    gram_ptr,
    doubt_ptr,
    r,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """gram (B, r, r): K, factors (B, r): see ``outcome``; doubt (B,) int32, r where all stand."""
    batch = tl.program_id(0).to(tl.int64)
    if tl.load(doubtful_ptr + batch) == 0:
        tl.store(doubt_ptr + batch, r)
        return
    before = tl.full((), 0.0, tl.float64)
    found = tl.full((), 0, tl.int32) + r
    not_given = found
    for top in range(0, r, ROWS):
        j = (top + tl.arange(0, ROWS)).to(tl.int64)
        squares = tl.full((ROWS,), 0.0, tl.float64)
        for start in range(0, top + ROWS, COLUMNS):
            i = (start + tl.arange(0, COLUMNS)).to(tl.int64)
            below = (i[None, :] < j[:, None]) & (j < r)[:, None]
            place = gram_ptr + (batch * r + j[:, None]) * r + i[None, :]
            c = tl.load(place, mask=below, other=0.0)
            squares += tl.sum(c * c, 1)
        so_far = before + 2.0 * tl.cumsum(squares, 0)
        # Not "above": NaN is in doubt.
        stands = so_far <= KEPT * KEPT
        here = tl.min(tl.where(stands | (j >= r), r, j), 0)
        found = tl.minimum(found, here.to(tl.int32))
        before += 2.0 * tl.sum(squares, 0)
        factor = tl.load(factors_ptr + batch * r + j, mask=j < r, other=1.0)
        none = tl.min(tl.where(factor > 0, r, j), 0)
        not_given = tl.minimum(not_given, none.to(tl.int32))
    tl.store(doubt_ptr + batch, tl.where(found < r, tl.minimum(found, not_given), r))
    if found < r:
        tl.store(incomplete_ptr + batch, 0)


@triton.jit
def without(q_ptr, x_ptr, products_ptr, count, long, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x <- x - Q^T (Q x) for the first ``count`` rows of Q; return its new length."""
    for first in range(0, count, ROWS):
        k = (first + tl.arange(0, ROWS)).to(tl.int64)
        total = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
        for start in range(0, long, COLUMNS):
            i = (start + tl.arange(0, COLUMNS)).to(tl.int64)
            inside = (k < count)[:, None] & (i < long)[None, :]
            q = tl.load(q_ptr + k[:, None] * long + i[None, :], mask=inside, other=0.0)
            x = tl.load(x_ptr + i, mask=i < long, other=0.0)
            total += q.to(tl.float64) * x[None, :]
        tl.store(products_ptr + k, tl.sum(total, 1), mask=k < count)
    # Threads read what others wrote, here and below.
    tl.debug_barrier()
    square = tl.full((COLUMNS,), 0.0, tl.float64)
    for start in range(0, long, COLUMNS):
        i = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        taken = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
        for first in range(0, count, ROWS):
            k = (first + tl.arange(0, ROWS)).to(tl.int64)
            inside = (k < count)[:, None] & (i < long)[None, :]
            q = tl.load(q_ptr + k[:, None] * long + i[None, :], mask=inside, other=0.0)
            p = tl.load(products_ptr + k, mask=k < count, other=0.0)
            taken += q.to(tl.float64) * p[:, None]
        x = tl.load(x_ptr + i, mask=i < long, other=0.0) - tl.sum(taken, 0)
        tl.store(x_ptr + i, x, mask=i < long)
        square += x * x
    tl.debug_barrier()
    return tl.sqrt(tl.sum(square, 0))


@triton.jit
def orthogonal(q_ptr, x_ptr, products_ptr, count, long, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Make x, of length one, orthogonal to the first rows; return what is left of it, 0 if none."""
    length = tl.full((), 1.0, tl.float64)
    passes = tl.full((), 0, tl.int32)
    while passes < PASSES:
        left = without(q_ptr, x_ptr, products_ptr, count, long, ROWS, COLUMNS)
        enough = (left > ENOUGH * length) | ((left > NOTHING_LEFT) == 0)
        passes = tl.where(enough, PASSES, passes + 1)
        length = left
    return tl.where(length > NOTHING_LEFT, length, 0.0)


@triton.jit
def put(q_ptr, x_ptr, row, length, long, COLUMNS: tl.constexpr):
    """Row of Q: x over its length, or zeros."""
    for start in range(0, long, COLUMNS):
        i = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        x = tl.load(x_ptr + i, mask=i < long, other=0.0)
        x = tl.where(length > 0, x / tl.where(length > 0, length, 1.0), 0.0)
        tl.store(q_ptr + row * long + i, x.to(q_ptr.dtype.element_ty), mask=i < long)
    tl.debug_barrier()


@triton.jit
def least_covered(q_ptr, r, long, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the i of the smallest sum_l q_li^2."""
    least = tl.full((), float("inf"), tl.float64)
    axis = tl.full((), 0, tl.int64)
    for start in range(0, long, COLUMNS):
        i = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        covered = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
        for first in range(0, r, ROWS):
            k = (first + tl.arange(0, ROWS)).to(tl.int64)
            inside = (k < r)[:, None] & (i < long)[None, :]
            q = tl.load(q_ptr + k[:, None] * long + i[None, :], mask=inside, other=0.0)
            covered += q.to(tl.float64) * q.to(tl.float64)
        coverage = tl.where(i < long, tl.sum(covered, 0), float("inf"))
        smallest = tl.min(coverage, 0)
        at = tl.min(tl.where(coverage == smallest, i, long), 0)
        axis = tl.where(smallest < least, at, axis)
        least = tl.minimum(smallest, least)
    return axis


@triton.jit
def settle(
    doubt_ptr, q_ptr, x_ptr, products_ptr, r, long, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """q (B, r, M) in place; x (B, M) and products (B, r) are memory for the work, float64."""
    batch = tl.program_id(0).to(tl.int64)
    doubt = tl.load(doubt_ptr + batch)
    if doubt >= r:
        return
    q = q_ptr + batch * r * long
    x = x_ptr + batch * long
    products = products_ptr + batch * r
    for number in range(doubt, r):
        row = tl.full((), 0, tl.int64) + number
        for start in range(0, long, COLUMNS):
            i = (start + tl.arange(0, COLUMNS)).to(tl.int64)
            own = tl.load(q + row * long + i, mask=i < long, other=0.0)
            tl.store(x + i, own.to(tl.float64), mask=i < long)
        tl.debug_barrier()
        length = orthogonal(q, x, products, number, long, ROWS, COLUMNS)
        put(q, x, row, length, long, COLUMNS)
    for number in range(doubt, r):
        row = tl.full((), 0, tl.int64) + number
        # The entries of a row without a direction are all zero, and of no other row.
        total = tl.full((COLUMNS,), 0.0, tl.float64)
        for start in range(0, long, COLUMNS):
            i = (start + tl.arange(0, COLUMNS)).to(tl.int64)
            own = tl.load(q + row * long + i, mask=i < long, other=0.0)
            total += tl.abs(own.to(tl.float64))
        if tl.sum(total, 0) == 0:
            axis = least_covered(q, r, long, ROWS, COLUMNS)
            for start in range(0, long, COLUMNS):
                i = (start + tl.arange(0, COLUMNS)).to(tl.int64)
                tl.store(x + i, tl.where(i == axis, 1.0, 0.0).to(tl.float64), mask=i < long)
            tl.debug_barrier()
            length = orthogonal(q, x, products, r, long, ROWS, COLUMNS)
            put(q, x, row, length, long, COLUMNS)
