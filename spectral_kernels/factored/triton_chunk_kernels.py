"""Pieces of the backward kernel: projections, their sums over parts, planes, and sums over rows.

``triton_backward_kernels.py`` says how they go together. Tensors t are x or g, (P, C); h are the k
numbers of each row, a or d, float32 in registers and *planes* in memory: high and low of the type
of x (SPLIT), or float32. Planes, parts and sums are padded to whole tiles, so nothing masks them.
What other programs of the launch have written is read past the L1 cache (``.cg``), which is not
coherent.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.factored.triton_kernels import PRECISION, load_tile, split, times_sigma


@triton.jit
def wait(counter_ptr, count):
    """Return when a counter has reached ``count``; what was written before is then visible."""
    while tl.atomic_add(counter_ptr, 0, sem="acquire") < count:
        pass
    tl.debug_barrier()


@triton.jit
def announce(counter_ptr):
    """Add one to a counter after all writes of this program; return what it was."""
    tl.debug_barrier()
    return tl.atomic_add(counter_ptr, 1, sem="acq_rel")


@triton.jit
def inside(ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the offsets of a contiguous tile."""
    return tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]


@triton.jit
def project(
    t_ptr, w_ptr, rows, part, P, C, K, stride_tp, stride_tc, stride_wc, stride_wk,
    SPLITS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return t w (rows, ranks) over one part of the C columns of t."""
    ranks = tl.arange(0, BLOCK_K)
    span = tl.cdiv(tl.cdiv(C, SPLITS), BLOCK_S) * BLOCK_S
    h = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    for start in range(part * span, min(C, part * span + span), BLOCK_S):
        cols = start + tl.arange(0, BLOCK_S)
        # To be read once more, from the cache: the last to go.
        t = load_tile(t_ptr, rows, cols, stride_tp, stride_tc, P, C, "evict_last")
        w = load_tile(w_ptr, cols, ranks, stride_wc, stride_wk, C, K)
        h = tl.dot(t, w, h, input_precision=PRECISION)
    # Infinite entries have made NaN of the zeros that ranks are padded with.
    return tl.where(ranks[None, :] < K, h, 0.0)


@triton.jit
def sum_of_parts(parts_ptr, places, PART: tl.constexpr, SPLITS: tl.constexpr):
    """Return the entries at ``places`` of SPLITS parts of PART entries, added in order."""
    total = tl.load(parts_ptr + places, cache_modifier=".cg")
    # Unrolled, so that the loads do not wait for each other.
    for part in tl.static_range(1, SPLITS):
        total += tl.load(parts_ptr + part * PART + places, cache_modifier=".cg")
    return total


@triton.jit
def sigma_product(
    parts_ptr, sigma_ptr, rows, K, DENSE: tl.constexpr, TRANSPOSED: tl.constexpr,
    SPLIT: tl.constexpr, PART: tl.constexpr, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return h Sigma^T (or h Sigma) for rows of h, which are sums of parts in memory."""
    ranks = tl.arange(0, BLOCK_K)
    if SPLIT or not DENSE:
        h = sum_of_parts(parts_ptr, rows[:, None] * BLOCK_K + ranks[None, :], PART, SPLITS)
        total = times_sigma(h, sigma_ptr, K, DENSE, TRANSPOSED, SPLIT)
    else:
        total = tl.zeros((rows.shape[0], BLOCK_K), dtype=tl.float32)
        stride_r = 1 if TRANSPOSED else K
        stride_c = K if TRANSPOSED else 1
        # 16 ranks at a time: operands of three TF32 products of whole tiles would need more
        # registers than anything else here, and spill.
        for first in range(0, BLOCK_K, 16):
            some = first + tl.arange(0, 16)
            places = rows[:, None] * BLOCK_K + some[None, :]
            h = sum_of_parts(parts_ptr, places, PART, SPLITS)
            sigma = load_tile(sigma_ptr, some, ranks, stride_r, stride_c, K, K)
            total = tl.dot(h, sigma.to(tl.float32), total, input_precision=PRECISION)
    return total


@triton.jit
def finish_projection(
    parts_ptr, sigma_ptr, plane_ptr, first_row, plane_size, side, K,
    DENSE: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the planes of BLOCK_P rows, ROWS at a time: the sum of parts, for g times Sigma."""
    PART: tl.constexpr = BLOCK_P * BLOCK_K
    for start in range(0, BLOCK_P, ROWS):
        tile = start * BLOCK_K + inside(ROWS, BLOCK_K)
        if side == 1:
            h = sigma_product(
                parts_ptr, sigma_ptr, start + tl.arange(0, ROWS), K,
                DENSE, False, SPLIT, PART, SPLITS, BLOCK_K,
            )  # fmt: skip
        else:
            h = sum_of_parts(parts_ptr, tile, PART, SPLITS)
        place = plane_ptr + first_row.to(tl.int64) * BLOCK_K + tile
        if SPLIT:
            high, low = split(h, plane_ptr.dtype.element_ty)
            tl.store(place, high)
            tl.store(place + plane_size, low)
        else:
            tl.store(place, h)


@triton.jit
def load_planes(
    plane_ptr, row, plane_size,
    SPLIT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return high and low of BLOCK_R rows from ``row`` on; the same twice where not SPLIT."""
    tile = row.to(tl.int64) * BLOCK_K + inside(BLOCK_R, BLOCK_K)
    high = tl.load(plane_ptr + tile, cache_modifier=".cg")
    low = high
    if SPLIT:
        low = tl.load(plane_ptr + plane_size + tile, cache_modifier=".cg")
    return high, low


@triton.jit
def expand(high, low, w, SPLIT: tl.constexpr):
    """Return h w for h = high + low (rows, ranks) and w (ranks, cols)."""
    if SPLIT:
        product = tl.dot(high, w, tl.dot(low, w))
    else:
        product = tl.dot(high, w.to(tl.float32), input_precision=PRECISION)
    return product


@triton.jit
def add_rows(total, t, high, low, SPLIT: tl.constexpr):
    """Return total + t^T h for t (rows, cols) and h = high + low (rows, ranks)."""
    if SPLIT:
        total = tl.dot(tl.trans(t), high, tl.dot(tl.trans(t), low, total))
    else:
        total = tl.dot(tl.trans(t.to(tl.float32)), high, total, input_precision=PRECISION)
    return total
