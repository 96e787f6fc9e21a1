"""What an update returns, from the values s, the factors W = X V and V, and what is proved.

``outcome``  a program a matrix: S, bounds and identities in descending order, the code of the work,
             whether the matrix is lost, and what to do with each vector. 60 r bytes.
``vectors``  a program a tile: rows j of out are columns order[j] of W, times a factor. Reads
             8 B rows r bytes, by columns that lie near each other as long as the order of the
             spectrum changes little, and writes as many numbers.
``keep``     a program a stretch of V: what the next update starts from, where it has turned.

A matrix with NaN or Inf gives NaN and keeps its state. What of S is no larger than the rounding of
W has no direction of its own: see ``triton_completion_kernels.py``; where columns may not be
orthogonal the matrix is doubtful: see ``triton_settling_kernels.py``.
"""

# Device code is no Python: Triton's compiler reads it.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.tracking.whole.triton_certificate_kernels import (
    ADDITIVE,
    COSINE,
    DRIFT,
    ERROR_NORM,
    LEADING,
    NORM,
    PROVED,
    ROUNDING,
    TAIL,
    TOP,
    gamma,
)
from spectral_kernels.tracking.whole.triton_settling_kernels import KEPT
from spectral_kernels.tracking.whole.triton_tangent_kernels import real
from spectral_kernels.tracking.whole.triton_verdict_kernels import LEAST, radius

NOT_FINITE = tl.constexpr(-1)
SOLVED = tl.constexpr(4)

# Factors of a vector that W does not give: what is there stays, or a unit vector comes.
STAYS = tl.constexpr(0.0)
AXIS = tl.constexpr(-1.0)

# V with more drift than this is not worth a start.
WORST_DRIFT = tl.constexpr(0.1)


@triton.jit
def outcome(
    values_ptr,
    order_ptr,
    proved_ptr,
    settings_ptr,
    scales_ptr,
    slots_ptr,
    asked_ptr,
    turns_ptr,
    drift_ptr,
    long_ptr,
    names_ptr,
    state_drift_ptr,
    fresh_ptr,
    out_s_ptr,
    bounds_ptr,
    identities_ptr,
    codes_ptr,
    lost_ptr,
    norms_ptr,
    factors_ptr,
    ones_ptr,
    incomplete_ptr,
    doubtful_ptr,
    turned_ptr,
    r,
    long,
    BLOCK: tl.constexpr,
):
    """slots (B, 3): where a matrix is among all, its values among all and those of its type."""
    batch = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + 3 * batch)
    first = tl.load(slots_ptr + 3 * batch + 1)
    first_s = tl.load(slots_ptr + 3 * batch + 2)
    proved = proved_ptr + batch * PROVED
    top = tl.load(proved + TOP)
    cosine, additive = tl.load(proved + COSINE), tl.load(proved + ADDITIVE)
    drift, tail = tl.load(proved + DRIFT), tl.load(proved + TAIL)
    rounding = tl.load(proved + ROUNDING)
    up, up_again = tl.load(scales_ptr + 2 * batch), tl.load(scales_ptr + 2 * batch + 1)
    least = tl.load(settings_ptr + LEAST)
    nan = float("nan")
    finite = top >= 0
    names = names_ptr + batch * (r + 1)
    unnamed = tl.load(names + r) == 0
    # What the rounding of W = X V can make of a zero column.
    noise = 2.0 * gamma(r) * tl.sqrt(real(r)) * tl.load(proved + NORM)
    missing = tl.full((BLOCK,), 0, tl.int32)
    unknown = tl.full((BLOCK,), 0, tl.int32)
    tiny = tl.full((BLOCK,), 0, tl.int32)
    for start in range(0, r, BLOCK):
        j = (start + tl.arange(0, BLOCK)).to(tl.int64)
        inside = j < r
        column = tl.load(order_ptr + batch * r + j, mask=inside, other=0)
        s = tl.load(values_ptr + batch * r + column, mask=inside, other=0.0)
        bound = (radius(s, cosine, additive, drift, tail, top) + rounding) * up * up_again + least
        told = tl.where(finite, s * up * up_again, nan)
        tl.store(out_s_ptr + first_s + j, told.to(out_s_ptr.dtype.element_ty), mask=inside)
        tl.store(bounds_ptr + first + j, tl.where(finite, bound, nan), mask=inside)
        name = tl.load(names + column, mask=inside, other=0)
        name = tl.where(unnamed, j, name)
        tl.store(identities_ptr + first + j, tl.where(finite, name, -1), mask=inside)
        # Not "inside & finite": the interpreter takes a scalar comparison of floats for a float.
        kept = tl.where(finite, j, r) < r
        tl.store(names + column, name, mask=kept)
        # The vectors there are as long as one, or not a number where there are none.
        there = tl.load(long_ptr + (batch * r + j) * long, mask=inside, other=0.0)
        has_none = (there == there) == 0
        none = (s > noise) == 0
        factor = tl.where(none, tl.where(has_none, AXIS, STAYS), 1.0 / tl.where(none, 1.0, s))
        tl.store(factors_ptr + batch * r + j, tl.where(finite, factor, nan), mask=inside)
        tl.store(ones_ptr + batch * r + j, tl.where(finite, 1.0, nan), mask=inside)
        missing += (none & inside).to(tl.int32)
        # Of columns that small the certificate knows no cosines.
        tiny += ((none | ((s > LEADING * top) == 0)) & inside).to(tl.int32)
        unknown += (none & inside & has_none).to(tl.int32)
    some = (tl.max(missing, 0) > 0) & finite
    tl.store(incomplete_ptr + batch, some.to(tl.int32))
    doubtful = ((tl.max(tiny, 0) > 0) | (cosine > KEPT)) & finite
    tl.store(doubtful_ptr + batch, doubtful.to(tl.int32))
    lost = finite & ((tl.load(asked_ptr + batch) != 0) | (tl.max(unknown, 0) > 0))
    tl.store(lost_ptr + slot, lost.to(tl.int8))
    fresh = tl.load(fresh_ptr + batch)
    turns = tl.load(turns_ptr + batch)
    code = tl.where(fresh != 0, SOLVED, turns)
    tl.store(codes_ptr + slot, tl.where(finite, code, NOT_FINITE).to(tl.int64))
    norm = tl.load(proved + ERROR_NORM) * up * up_again + tl.sqrt(real(r)) * least
    tl.store(norms_ptr + slot, tl.where(finite, norm, nan))
    tl.store(fresh_ptr + batch, tl.where(finite, 0, fresh))
    tl.store(names + r, tl.where(finite & unnamed, real(r).to(tl.int64), tl.load(names + r)))
    new = tl.load(drift_ptr + batch)
    better = (turns > 0) & (new < WORST_DRIFT)
    tl.store(turned_ptr + batch, better.to(tl.int32))
    old = tl.load(state_drift_ptr + batch)
    tl.store(state_drift_ptr + batch, tl.where(better, new, old))


@triton.jit
def vectors(
    columns_ptr,
    order_ptr,
    factors_ptr,
    out_ptr,
    rows,
    r,
    SIDE: tl.constexpr,
):
    """columns (B, rows, r), out (B, r, rows); factors (B, r) as of ``outcome``."""
    across = (rows + SIDE - 1) // SIDE
    tiles = across * ((r + SIDE - 1) // SIDE)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    j = (tile // across * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    i = (tile % across * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    column = tl.load(order_ptr + batch * r + j, mask=j < r, other=0)
    factor = tl.load(factors_ptr + batch * r + j, mask=j < r, other=STAYS)
    inside = (i < rows)[:, None] & (j < r)[None, :]
    place = columns_ptr + (batch * rows + i[:, None]) * r + column[None, :]
    x = tl.load(place, mask=inside, other=0.0) * factor[None, :]
    axis = tl.where(i[:, None] == (j % rows)[None, :], 1.0, 0.0)
    x = tl.where((factor == AXIS)[None, :], axis, x)
    written = ((j < r) & (factor != STAYS))[:, None] & (i < rows)[None, :]
    out = out_ptr + (batch * r + j[:, None]) * rows + i[None, :]
    tl.store(out, tl.trans(x).to(out_ptr.dtype.element_ty), mask=written)


@triton.jit
def keep(turned_ptr, new_ptr, old_ptr, count, BLOCK: tl.constexpr):
    """new and old (B, count)."""
    blocks = (count + BLOCK - 1) // BLOCK
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    if tl.load(turned_ptr + batch) == 0:
        return
    at = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    place = batch * count + at
    tl.store(old_ptr + place, tl.load(new_ptr + place, mask=at < count), mask=at < count)
