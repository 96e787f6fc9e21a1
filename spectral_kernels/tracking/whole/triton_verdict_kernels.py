"""The theorem of ``tracking/bounds.py`` for a batch: what sums over S prove, and who has to turn.

A program a matrix: bounds of ||C||_2, ||W_L - Q D||_F and ||V^T V - I||_2 from the sums of its
rows, the largest bound of a value against the tolerance, and the scales of the rotation that would
follow. 60 r bytes. The names are those of the derivation: cosine is c, additive d, drift f.

Everything is float64. A program leaves at once where its matrix was not asked to turn, except in
the FIRST round.
"""

# Device code is no Python: Triton's compiler reads it.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.tracking.whole.triton_certificate_kernels import (
    ADDITIVE,
    COSINE,
    COSINES,
    DEPARTURE_SQUARES,
    DEPARTURES,
    DRIFT,
    ERROR_NORM,
    LEADING,
    NORM,
    PROVED,
    ROUNDING,
    SQUARES,
    SUMS,
    TAIL,
    TANGENTS,
    TOP,
    UP,
    WEIGHTED,
    gamma,
)
from spectral_kernels.tracking.whole.triton_tangent_kernels import real

# Of ``settings`` (3,): the tolerance, the rounding of the results, the smallest number they hold.
TOLERANCE = tl.constexpr(0)
NARROWING = tl.constexpr(1)
LEAST = tl.constexpr(2)


@triton.jit
def radius(s, cosine, additive, drift, tail, top):
    """Return the theorem's bound of |sigma_i(X) - s|, infinite where nothing is proved."""
    leading = s > LEADING * top
    relative_low = s * tl.sqrt(tl.maximum(1.0 - cosine, 0.0))
    low = tl.where(leading, tl.maximum(relative_low, s - additive), 0.0) / tl.sqrt(1.0 + drift)
    high = tl.minimum(s * tl.sqrt(1.0 + cosine), s + additive)
    high = tl.where(leading, tl.sqrt(high * high + tail * tail), tail)
    proved = drift < 1.0
    high = high / tl.sqrt(tl.where(proved, 1.0 - drift, 1.0))
    found = tl.where(proved, tl.maximum(s - low, high - s), float("inf"))
    # A zero matrix has zero columns whatever V is, unless V is nothing at all.
    return tl.where((top == 0) & proved, 0.0, found)


@triton.jit
def _two_norm(sums_ptr, first, second, r, BLOCK: tl.constexpr):
    """Return a bound of the 2-norm of a symmetric matrix from its row sums and their squares."""
    largest = tl.full((BLOCK,), 0.0, tl.float64)
    total = tl.full((BLOCK,), 0.0, tl.float64)
    for start in range(0, r, BLOCK):
        j = (start + tl.arange(0, BLOCK)).to(tl.int64)
        largest = tl.maximum(largest, tl.load(sums_ptr + first * r + j, mask=j < r, other=0.0))
        total += tl.load(sums_ptr + second * r + j, mask=j < r, other=0.0)
    return tl.minimum(tl.max(largest, 0), tl.sqrt(tl.sum(total, 0))) * UP


@triton.jit
def _drift_after(sums_ptr, r, BLOCK: tl.constexpr):
    """Return a bound of ||V^T V - I||_2 for V = fl(N (3/2 I - 1/2 N^T N)), N^T N as measured."""
    side = tl.sqrt(real(r))
    measured = _two_norm(sums_ptr, DEPARTURES, DEPARTURE_SQUARES, r, BLOCK)
    # Every entry of N^T N is off by gamma |n_i| |n_j|.
    slip = 1.2 * real(r) * gamma(r) * (1.0 + measured)
    before = measured + slip
    # | |N| |Z| |_F <= |N|_F |Z|_inf; the rounding of Z, entry by entry, is less.
    rounding = gamma(r + 2) * side * (1.0 + before) * (1.0 + side * before)
    # Z is made from the measured N^T N, so its error comes on top once.
    after = before * before * (0.75 + 0.25 * before) + 1.5 * slip + 2.2 * rounding
    # NaN is dropped by neither comparison: beyond one half nothing is claimed.
    return tl.where(before < 0.5, after, 1.0)


@triton.jit
def verdict(
    sums_ptr,
    values_ptr,
    settings_ptr,
    drift_ptr,
    asked_ptr,
    turns_ptr,
    proved_ptr,
    shrink_ptr,
    r,
    long,
    FIRST: tl.constexpr,
    LARGEST_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """asked, turns (B,) int32, drift (B,) of V; shrink (B, r), the scales of a rotation's rows."""
    batch = tl.program_id(0).to(tl.int64)
    sums = sums_ptr + batch * SUMS * r
    proved = proved_ptr + batch * PROVED
    if FIRST:
        tl.store(turns_ptr + batch, 0)
        drift = tl.load(drift_ptr + batch)
    else:
        if tl.load(asked_ptr + batch) == 0:
            return
        tl.store(turns_ptr + batch, tl.load(turns_ptr + batch) + 1)
        drift = _drift_after(sums, r, BLOCK)
        tl.store(drift_ptr + batch, drift)
    top = tl.load(proved + TOP)
    norm = tl.load(proved + NORM)
    tail = tl.load(proved + TAIL)
    size = real(r)
    side = tl.sqrt(size)
    slip = size * gamma(long)
    cosine = _two_norm(sums, COSINES, SQUARES, r, BLOCK) + slip
    weighted = tl.full((BLOCK,), 0.0, tl.float64)
    for start in range(0, r, BLOCK):
        j = (start + tl.arange(0, BLOCK)).to(tl.int64)
        weighted += tl.load(sums + WEIGHTED * r + j, mask=j < r, other=0.0)
        turn = tl.load(sums + TANGENTS * r + j, mask=j < r, other=0.0)
        shrink = LARGEST_ROW / tl.maximum(turn, LARGEST_ROW)
        tl.store(shrink_ptr + batch * r + j, shrink, mask=j < r)
    pull = tl.sqrt(tl.sum(weighted, 0)) * UP + slip * norm
    additive = pull / (1.0 + tl.sqrt(tl.maximum(1.0 - cosine, 0.0)))
    worst = tl.full((BLOCK,), 0.0, tl.float64)
    for start in range(0, r, BLOCK):
        j = (start + tl.arange(0, BLOCK)).to(tl.int64)
        s = tl.load(values_ptr + batch * r + j, mask=j < r, other=0.0)
        found = radius(s, cosine, additive, drift, tail, top)
        worst = tl.maximum(worst, tl.where(j < r, found, 0.0))
    known = drift < 1.0
    stretch = 1.0 / tl.sqrt(tl.where(known, 1.0 - drift, 1.0)) - 1.0
    product = 2.0 * gamma(r) * side * norm
    narrowing = tl.load(settings_ptr + NARROWING)
    total = additive + 2.0 * tail
    total = total + (norm + total) * stretch + product + side * narrowing * top
    total = tl.where(known, tl.where(top == 0, 0.0, total), float("inf"))
    tl.store(proved + COSINE, cosine)
    tl.store(proved + ADDITIVE, additive)
    tl.store(proved + DRIFT, drift)
    tl.store(proved + ROUNDING, product + narrowing * top)
    tl.store(proved + ERROR_NORM, total)
    # A comparison with NaN is false: a matrix that is not finite asks for nothing.
    kept = tl.max(worst, 0) <= tl.load(settings_ptr + TOLERANCE) * top
    finite = top >= 0
    tl.store(asked_ptr + batch, (finite & (kept == 0)).to(tl.int32))
