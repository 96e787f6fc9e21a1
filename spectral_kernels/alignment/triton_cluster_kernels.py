"""Which singular values are too close to tell their vectors apart: a program a spectrum.

A spectrum s and the one s' that it is compared with, errors b and b' (``alignment.clusters``):

    rho_i = b_i + b'_i + max(|s_j - s'_j| : |j - i| <= 1),   NaN counting as nothing.

Value i begins a cluster where neither s_i +- rho_i nor s'_i +- rho_i reaches the interval before;
the first index of a cluster is the largest beginning up to i, a scan. 28 or 32 bytes read and up to
25 written a value; the neighbours' are in cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clusters(
    values_ptr, bounds_ptr, jobs_ptr, other_ptr, errors_ptr, first_ptr, alone_ptr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """jobs (spectra, 4): start, length, from where on values are unseen (-1: nowhere), whether
    ``other`` and ``errors`` become the values and bounds.

    ``first`` int64 counts from the start of a spectrum; ``alone`` uint8.
    """
    job = jobs_ptr + tl.program_id(0).to(tl.int64) * 4
    start, r, unseen, follow = tl.load(job), tl.load(job + 1), tl.load(job + 2), tl.load(job + 3)
    values_ptr, bounds_ptr = values_ptr + start, bounds_ptr + start
    other_ptr, errors_ptr = other_ptr + start, errors_ptr + start
    before, begin = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    for place in range(0, r, BLOCK):
        i = place + tl.arange(0, BLOCK)
        value, other, radius = _interval(values_ptr, bounds_ptr, other_ptr, errors_ptr, i, r)
        left, other_left, wide = _interval(values_ptr, bounds_ptr, other_ptr, errors_ptr, i - 1, r)
        right, other_right, far = _interval(values_ptr, bounds_ptr, other_ptr, errors_ptr, i + 1, r)
        begins = _apart(left, wide, value, radius) & _apart(other_left, wide, other, radius)
        ends = _apart(value, radius, right, far) & _apart(other, radius, other_right, far)
        found = tl.associative_scan(tl.where(begins & (i < r), i, before), 0, _larger)
        before = tl.max(found, 0)
        begin = tl.maximum(begin, tl.max(tl.where(i == unseen - 1, found, 0), 0))
        tl.store(first_ptr + start + i, found, mask=i < r)
        alone = begins & ends & (value - radius > 0) & ((other - radius <= 0) == 0)
        tl.store(alone_ptr + start + i, alone.to(tl.uint8), mask=i < r)
    # Neighbours read `other`, and `alone` is written by other threads until here.
    tl.debug_barrier()
    begin = tl.where(unseen < 0, r, begin)
    for place in range(0, r, BLOCK):
        i = place + tl.arange(0, BLOCK)
        value = tl.load(values_ptr + i, mask=i < r, other=0.0).to(tl.float64)
        bound = tl.load(bounds_ptr + i, mask=i < r, other=0.0)
        kept = (i < tl.where(follow != 0, r, 0)) & (tl.abs(value) < float("inf"))
        tl.store(other_ptr + i, value, mask=kept)
        tl.store(errors_ptr + i, bound, mask=kept)
        tl.store(alone_ptr + start + i, tl.zeros((BLOCK,), tl.uint8), mask=(i < r) & (i >= begin))


@triton.jit
def _interval(values_ptr, bounds_ptr, other_ptr, errors_ptr, i, r):
    """Return s, s' and their radius, NaN beyond the ends."""
    inside = (i >= 0) & (i < r)
    value = tl.load(values_ptr + i, mask=inside, other=float("nan")).to(tl.float64)
    other = tl.load(other_ptr + i, mask=inside, other=float("nan"))
    error = tl.where(other == other, tl.load(errors_ptr + i, mask=inside, other=0.0), 0.0)
    moved = _moved(values_ptr, other_ptr, i, r)
    near = tl.maximum(_moved(values_ptr, other_ptr, i - 1, r),
                      _moved(values_ptr, other_ptr, i + 1, r))  # fmt: skip
    bound = tl.load(bounds_ptr + i, mask=inside, other=0.0)
    return value, other, bound + error + tl.maximum(near, moved)


@triton.jit
def _moved(values_ptr, other_ptr, i, r):
    """Return |s - s'|, 0 where one is NaN or beyond the ends."""
    inside = (i >= 0) & (i < r)
    value = tl.load(values_ptr + i, mask=inside, other=0.0).to(tl.float64)
    distance = tl.abs(value - tl.load(other_ptr + i, mask=inside, other=0.0))
    return tl.where(distance == distance, distance, 0.0)


@triton.jit
def _apart(larger, its_radius, smaller, radius):
    """Return whether two intervals do not meet. NaN, as beyond the ends, meets nothing."""
    return (larger - its_radius <= smaller + radius) == 0


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)
