"""Which singular values are too close to tell their vectors apart: a program a spectrum.

A cluster is a chain of overlapping intervals s_i +- radius_i (``alignment.clusters``), with
radius_i = b_i + |s_i - last_i|, the second term 0 where ``last`` is NaN. Value i begins a cluster
where its interval does not reach the one before; the first index of a cluster is the largest
beginning up to i, a scan. 28 or 32 bytes read and 17 written a value; the neighbours' are in cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clusters(values_ptr, bounds_ptr, jobs_ptr, last_ptr, first_ptr, alone_ptr, BLOCK: tl.constexpr):
    """jobs (spectra, 3): start, length, whether values go on after the last. ``last`` is renewed.

    ``first`` int64 counts from the start of a spectrum; ``alone`` uint8.
    """
    job = jobs_ptr + tl.program_id(0).to(tl.int64) * 3
    start, r, is_open = tl.load(job), tl.load(job + 1), tl.load(job + 2)
    values_ptr, bounds_ptr, last_ptr = values_ptr + start, bounds_ptr + start, last_ptr + start
    before = tl.full((), 0, tl.int64)
    for place in range(0, r, BLOCK):
        i = place + tl.arange(0, BLOCK)
        low, high = _interval(values_ptr, bounds_ptr, last_ptr, i, i < r)
        low_before, _ = _interval(values_ptr, bounds_ptr, last_ptr, i - 1, (i > 0) & (i <= r))
        _, high_after = _interval(values_ptr, bounds_ptr, last_ptr, i + 1, i + 1 < r)
        # Comparisons with NaN are false: NaN joins nothing, and beyond the ends there is NaN.
        begins = (low_before <= high) == 0
        ends = (low <= high_after) == 0
        found = tl.associative_scan(tl.where(begins & (i < r), i, before), 0, _larger)
        before = tl.max(found, 0)
        tl.store(first_ptr + start + i, found, mask=i < r)
        alone = begins & ends & (low > 0)
        tl.store(alone_ptr + start + i, alone.to(tl.uint8), mask=i < r)
    # Neighbours read `last` and `alone` is written by other threads until here.
    tl.debug_barrier()
    for place in range(0, r, BLOCK):
        i = place + tl.arange(0, BLOCK)
        value = tl.load(values_ptr + i, mask=i < r, other=0.0).to(tl.float64)
        tl.store(last_ptr + i, value, mask=(i < r) & (tl.abs(value) < float("inf")))
        unknown = (i < r) & (i >= tl.where(is_open != 0, before, r))
        tl.store(alone_ptr + start + i, tl.zeros((BLOCK,), tl.uint8), mask=unknown)


@triton.jit
def _interval(values_ptr, bounds_ptr, last_ptr, i, inside):
    """Return s - radius and s + radius, NaN beyond the ends."""
    value = tl.load(values_ptr + i, mask=inside, other=float("nan")).to(tl.float64)
    last = tl.load(last_ptr + i, mask=inside, other=float("nan"))
    moved = tl.abs(value - last)
    known = last == last
    radius = tl.load(bounds_ptr + i, mask=inside, other=0.0) + tl.where(known, moved, 0.0)
    return value - radius, value + radius


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)
