"""Bounds of a summary, from bounds of the values: what ``rank.summary_bounds`` derives.

Errors d_i in units of sum s, |d_i| <= b_i, ||d||_2 <= beta, |sum d| <= B < 1, p = s / sum s, H the
entropy of p, E the indices with b_i <= p_i and R the others:

    |H' - H| <= [min(|g|_2 beta, sum_E |g_i| b_i) + |1 - H| B_R + sum_R G_i
                 + max(min(sum_E b_i^2 / p_i, beta^2 / min_E p_i), B^2)] / (1 - B),

g_i = ln p_i + H, B_R the share of R in B, G_i the largest change of -x ln x for x within b_i of
p_i. Two passes over a spectrum and its bounds, one program a spectrum; 12 or 16 bytes a value,
read once from memory and once from cache, three logarithms a value.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.runtime.triton.device import FLOAT64, load_float64, surprisal


@triton.jit
def bound(
    base_ptr, values, bounds, norm, ptr, code, r, rtol, top, entropy, rank, stable, nuclear,
    frobenius, good, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the seven bounds of one summary to ``ptr``. ``good``: the values are finite."""
    some = top > 0
    scale = tl.where(some, top, 1.0)
    beta = tl.load((base_ptr + norm).to(tl.pointer_type(tl.float64)))
    unit, total, length, near, most, unknown = _errors(
        base_ptr, values, bounds, code, r, rtol, scale, BLOCK
    )
    terms = r.to(tl.float64)
    length = tl.minimum(beta / scale, length)
    bounds_ptr = (base_ptr + bounds).to(tl.pointer_type(tl.float64))
    first = tl.minimum(tl.load(bounds_ptr, mask=r > 0, other=0.0) / scale, length)
    total = tl.minimum(total, tl.sqrt(terms) * length)
    # Where the errors add up to all there is, the matrix may be anything.
    whole = tl.where(some, unit, 1.0)
    share = tl.where(some, total / whole, 1.0)
    closed = share < 1.0
    safe_share = tl.where(closed, share, 0.0)
    change = _expansion(
        base_ptr, values, bounds, code, r, scale, whole, entropy, length / whole, safe_share, BLOCK
    )
    limit = tl.maximum(entropy, tl.log(terms) - entropy)
    change = tl.minimum(limit, tl.minimum(_distance(safe_share, terms), change))
    change = tl.where(closed, change, limit)
    low = tl.where(closed, tl.maximum(rank * tl.exp(-change), 1.0), 0.0)
    high = tl.where(closed, tl.minimum(rank * tl.exp(change), terms), terms)
    # eps and the smallest number of the values' type.
    double = code == FLOAT64
    eps = tl.where(double, tl.full((), 2.0**-52, tl.float64), tl.full((), 2.0**-23, tl.float64))
    least = tl.where(
        double, tl.full((), 2.0**-1074, tl.float64), tl.full((), 2.0**-149, tl.float64)
    )
    rounding = eps + (terms + 8.0) * 2.0**-51
    # Values of 0 that are known to the last bit are a matrix of zeros: any other has an entry
    # that large.
    zero = (top == 0) & (most <= least)
    # Comparisons with NaN are false.
    known = good & (unknown == 0) & (beta >= 0)
    _store(ptr, 0, known, zero, change + rounding * (1.0 + tl.log(terms)))
    _store(ptr, 1, known, zero, tl.maximum(high - rank, rank - low) + rounding * terms)
    _store(ptr, 2, known, zero, _stable_rank(stable, first, length, terms) + rounding * stable)
    _store(ptr, 3, known, zero, near)
    _store(ptr, 4, known, zero, first * scale + rounding * top)
    _store(ptr, 5, known, zero, total * scale + rounding * nuclear)
    _store(ptr, 6, known, zero, length * scale + rounding * frobenius)


@triton.jit
def _store(ptr, column, known, zero, value):
    nan = tl.full((), float("nan"), tl.float64)
    tl.store(ptr + column, tl.where(known, tl.where(zero, 0.0, value), nan))


@triton.jit
def _errors(base_ptr, values, bounds, code, r, rtol, scale, BLOCK: tl.constexpr):
    """Return sum x, sum b, |b|_2, the count of values near the threshold, max b in the units of
    the matrix, and how many bounds are no numbers >= 0; x and b relative to ``scale``."""
    unit = tl.zeros((BLOCK,), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    near = tl.zeros((BLOCK,), tl.float64)
    most = tl.zeros((BLOCK,), tl.float64)
    unknown = tl.zeros((BLOCK,), tl.int32)
    bounds_ptr = (base_ptr + bounds).to(tl.pointer_type(tl.float64))
    threshold = rtol * tl.load(bounds_ptr, mask=r > 0, other=0.0) / scale
    for start in range(0, r, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < r
        given = tl.load(bounds_ptr + i, mask=inside, other=0.0)
        x = load_float64(base_ptr, values, i, inside, code) / scale
        b = given / scale
        unit += x
        total += b
        squares += b * b
        near += tl.where(inside & (tl.abs(x - rtol) <= b + threshold), 1.0, 0.0)
        most = tl.maximum(most, given)
        unknown += tl.where(given >= 0, 0, 1)
    return (tl.sum(unit, 0), tl.sum(total, 0), tl.sqrt(tl.sum(squares, 0)), tl.sum(near, 0),
            tl.max(most, 0), tl.sum(unknown, 0))  # fmt: skip


@triton.jit
def _expansion(
    base_ptr, values, bounds, code, r, scale, unit, entropy, beta, share, BLOCK: tl.constexpr
):
    """Return the bound above; ``beta`` and ``share`` (B) in units of the sum of the values."""
    squares = tl.zeros((BLOCK,), tl.float64)
    linear = tl.zeros((BLOCK,), tl.float64)
    second = tl.zeros((BLOCK,), tl.float64)
    least = tl.full((BLOCK,), 1.0, tl.float64)
    outside = tl.zeros((BLOCK,), tl.float64)
    rest = tl.zeros((BLOCK,), tl.float64)
    changes = tl.zeros((BLOCK,), tl.float64)
    bounds_ptr = (base_ptr + bounds).to(tl.pointer_type(tl.float64))
    for start in range(0, r, BLOCK):
        i = start + tl.arange(0, BLOCK)
        p = load_float64(base_ptr, values, i, i < r, code) / scale / unit
        b = tl.load(bounds_ptr + i, mask=i < r, other=0.0) / scale / unit
        near = (b <= p) & (p > 0)
        far = (b > p) | ((b > 0) & (p <= 0))
        safe = tl.where(near, p, 1.0)
        g = tl.where(near, tl.log(safe) + entropy, 0.0)
        error = tl.where(near, b, 0.0)
        squares += g * g
        linear += tl.abs(g) * error
        second += error * error / safe
        least = tl.minimum(least, safe)
        outside += tl.where(far, 1.0, 0.0)
        rest += tl.where(far, b, 0.0)
        changes += tl.where(far, _surprisal_change(p, b), 0.0)
    count, change = tl.sum(outside, 0), tl.sum(changes, 0)
    smallest = tl.min(least, 0)
    first = tl.minimum(tl.sum(linear, 0), tl.sqrt(tl.sum(squares, 0)) * beta)
    curved = tl.minimum(tl.sum(second, 0), beta * beta / smallest)
    each = beta / tl.sqrt(tl.maximum(count, 1.0))
    left = tl.minimum(tl.sum(rest, 0), count * each)
    # e^-2, up to which -x ln x rises steeply enough.
    change = tl.where(
        beta <= 0.1353352832366127, tl.minimum(change, count * surprisal(each)), change
    )
    first += tl.abs(1.0 - entropy) * left + change
    return (first + tl.maximum(curved, share * share)) / (1.0 - share)


@triton.jit
def _surprisal_change(p, b):
    """Return the largest change of -x ln x as x >= 0 moves from p by at most b."""
    peak = tl.full((), 0.36787944117144233, tl.float64)
    low, high = tl.maximum(p - b, 0.0), p + b
    here, at_low, at_high = surprisal(p), surprisal(low), surprisal(high)
    most = tl.where((low < peak) & (peak < high), peak, tl.maximum(at_low, at_high))
    return tl.maximum(most - here, here - tl.minimum(at_low, at_high))


@triton.jit
def _distance(t, terms):
    """Return the change of an entropy of ``terms`` terms at total variation distance t
    (Audenaert, J. Phys. A 40, 2007)."""
    t = tl.minimum(t, 1.0 - 1.0 / terms)
    return t * tl.log(tl.maximum(terms - 1.0, 1.0)) + surprisal(t) + surprisal(1.0 - t)


@triton.jit
def _stable_rank(stable, first, length, terms):
    """Return the largest error of F^2 / s_1^2 = 1 + (norm of the other values)^2 / s_1^2."""
    closed = first < 1.0
    e = tl.where(closed, first, 0.0)
    others = tl.sqrt(tl.maximum(stable - 1.0, 0.0))
    above, below = (others + length) / (1.0 - e), tl.maximum(others - length, 0.0) / (1.0 + e)
    high = tl.minimum(terms, 1.0 + above * above)
    found = tl.maximum(tl.maximum(high - stable, stable - 1.0 - below * below), 0.0)
    return tl.where(closed, found, tl.maximum(stable, terms - stable))
