"""The gradients of y = x (U Sigma Vh)^T + bias in one launch that reads x and g from memory once.

With a = x Vh^T, c = g U and d = c Sigma (p x k):
    dx = d Vh    dVh = d^T x    G = g^T a    dU = G Sigma^T    dSigma = U^T G    dbias = sum of g
Sums over rows need what sums over columns gave, so x and g are read twice: plain products read them
twice from device memory; here rows go by in chunks, and a chunk's second reading finds it in the L2
cache. Device memory: 2 p n + p m entries (x, dx, g); the cache: twice that, and what
``launch_plan.py`` counts.

A program does one piece of work, given by a ticket, and waits for lower tickets alone, which have
all begun: no order of programs on the device can stop it. Per chunk: pieces that *project* (BLOCK_P
rows of x or g, one of SPLITS parts of the columns, to a or d), then pieces that *reduce* (BLOCK_C
columns of x or g over the rows of the chunk). The projections of a chunk come before the reductions
of the chunk before it. Sums are float32 and their order is fixed: parts 0, 1, ... by whoever comes
last, chunks 0, 1, ... by waiting. Precision of products: as in ``decomposed.triton_kernels``; a and
d are kept as two planes of bfloat16 (SPLIT) or one of float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.decomposed.triton_chunk_kernels import (
    add_rows,
    announce,
    core_product,
    expand,
    finish_projection,
    inside,
    load_planes,
    project,
    wait,
)
from spectral_kernels.decomposed.triton_kernels import (
    PRECISION,
    load_tile,
    split,
    store_tile,
    times_core,
)


@triton.jit
def sums_so_far(sums_ptr, done_ptr, chunk, total):
    """Return total plus what the chunks before have left, once they have."""
    if chunk > 0:
        wait(done_ptr, chunk)
        total += tl.load(sums_ptr + inside(total.shape[0], total.shape[1]), cache_modifier=".cg")
    return total


@triton.jit
def reduce_x(
    x_ptr, v_ptr, plane_ptr, ready_ptr, sums_ptr, done_ptr, dx_ptr, dv_ptr,
    P, N, K, stride_xp, stride_xn, stride_vk, stride_vn, plane_size,
    block, chunk, chunks,
    SPLIT: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx of one chunk and BLOCK_C columns, and these columns of dVh after the last chunk."""
    ranks = tl.arange(0, BLOCK_K)
    cols = block * BLOCK_C + tl.arange(0, BLOCK_C)
    v = load_tile(v_ptr, ranks, cols, stride_vk, stride_vn, K, N)
    wait(ready_ptr, CHUNK // BLOCK_P)
    total = tl.zeros((BLOCK_C, BLOCK_K), dtype=tl.float32)
    for start in range(0, CHUNK, BLOCK_R):
        row = chunk * CHUNK + start
        rows = row + tl.arange(0, BLOCK_R)
        x = load_tile(x_ptr, rows, cols, stride_xp, stride_xn, P, N, "evict_first")
        high, low = load_planes(plane_ptr, row, plane_size, SPLIT, BLOCK_R, BLOCK_K)
        dx = expand(high, low, v, SPLIT)
        store_tile(dx_ptr, dx, rows, cols, N, 1, P, N)
        total = add_rows(total, x, high, low, SPLIT)
    total = sums_so_far(sums_ptr, done_ptr, chunk, total)
    if chunk + 1 < chunks:
        tl.store(sums_ptr + inside(BLOCK_C, BLOCK_K), total)
        announce(done_ptr)
    else:
        store_tile(dv_ptr, total, cols, ranks, 1, N, N, K)


@triton.jit
def reduce_g(
    g_ptr, u_ptr, sigma_ptr, plane_ptr, ready_ptr, sums_ptr, bias_sums_ptr, done_ptr,
    du_ptr, dsigma_ptr, dbias_ptr,
    P, M, K, stride_gp, stride_gm, stride_um, stride_uk, plane_size,
    block, chunk, chunks,
    DENSE: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_C rows of dU, their part of dSigma and of dbias, after the last chunk."""
    ranks = tl.arange(0, BLOCK_K)
    inner = tl.arange(0, BLOCK_C)
    cols = block * BLOCK_C + inner
    wait(ready_ptr, CHUNK // BLOCK_P)
    total = tl.zeros((BLOCK_C, BLOCK_K), dtype=tl.float32)
    bias = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(0, CHUNK, BLOCK_R):
        row = chunk * CHUNK + start
        rows = row + tl.arange(0, BLOCK_R)
        g = load_tile(g_ptr, rows, cols, stride_gp, stride_gm, P, M, "evict_first")
        high, low = load_planes(plane_ptr, row, plane_size, SPLIT, BLOCK_R, BLOCK_K)
        total = add_rows(total, g, high, low, SPLIT)
        if BIAS:
            bias += tl.sum(g.to(tl.float32), axis=0)
    total = sums_so_far(sums_ptr, done_ptr, chunk, total)
    if BIAS:
        if chunk > 0:
            bias += tl.load(bias_sums_ptr + inner, cache_modifier=".cg")
    if chunk + 1 < chunks:
        tl.store(sums_ptr + inside(BLOCK_C, BLOCK_K), total)
        if BIAS:
            tl.store(bias_sums_ptr + inner, bias)
        announce(done_ptr)
    else:
        if BIAS:
            tl.store(dbias_ptr + cols, bias.to(dbias_ptr.dtype.element_ty), mask=cols < M)
        if SPLIT:
            u = load_tile(u_ptr, cols, ranks, stride_um, stride_uk, M, K)
            du = times_core(total, sigma_ptr, K, DENSE, True, SPLIT)
            store_tile(du_ptr, du, cols, ranks, K, 1, M, K)
            if DENSE:
                high, low = split(total, u_ptr.dtype.element_ty)
                core = tl.dot(tl.trans(u), high, tl.dot(tl.trans(u), low))
                tl.store(dsigma_ptr + inside(BLOCK_K, BLOCK_K), core)
            else:
                tl.store(dsigma_ptr + ranks, tl.sum(u.to(tl.float32) * total, axis=0))
        else:
            tl.store(sums_ptr + inside(BLOCK_C, BLOCK_K), total)
            tl.debug_barrier()
            finish_g(
                u_ptr, sigma_ptr, sums_ptr, du_ptr, dsigma_ptr, M, K, stride_um, stride_uk, block,
                DENSE, BLOCK_C, BLOCK_K,
            )  # fmt: skip


@triton.jit
def finish_g(
    u_ptr, sigma_ptr, sums_ptr, du_ptr, dsigma_ptr, M, K, stride_um, stride_uk, block,
    DENSE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dU = G Sigma^T and dSigma = U^T G for BLOCK_C rows of U and G, float32 throughout."""
    # A few rows at a time, for the registers' sake: see ``core_product``.
    ROWS: tl.constexpr = 16
    ranks = tl.arange(0, BLOCK_K)
    core = tl.zeros((BLOCK_K, BLOCK_K if DENSE else 1), dtype=tl.float32)
    for start in range(0, BLOCK_C, ROWS):
        inner = start + tl.arange(0, ROWS)
        rows = block * BLOCK_C + inner
        G = tl.load(sums_ptr + start * BLOCK_K + inside(ROWS, BLOCK_K), cache_modifier=".cg")
        u = load_tile(u_ptr, rows, ranks, stride_um, stride_uk, M, K).to(tl.float32)
        if DENSE:
            core = tl.dot(tl.trans(u), G, core, input_precision=PRECISION)
        else:
            core += tl.sum(u * G, axis=0)[:, None]
        du = core_product(sums_ptr, sigma_ptr, inner, K, DENSE, True, False, 0, 1, BLOCK_K)
        store_tile(du_ptr, du, rows, ranks, K, 1, M, K)
    tl.store(dsigma_ptr + inside(core.shape[0], core.shape[1]), core)


# The number of chunks changes with every number of rows: not worth a compilation of its own.
@triton.jit(do_not_specialize=["chunks"])
def usv_backward(
    g_ptr, x_ptr, u_ptr, sigma_ptr, v_ptr,
    dx_ptr, du_ptr, dsigma_ptr, dv_ptr, dbias_ptr,
    counters_ptr, parts_ptr, planes_ptr, sums_ptr,
    P, M, N, K, chunks,
    stride_gb, stride_gp, stride_gm,
    stride_xb, stride_xp, stride_xn,
    stride_ub, stride_um, stride_uk,
    stride_vb, stride_vk, stride_vn,
    DENSE: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid: B chunks (2 SPLITS CHUNK / BLOCK_P + column blocks of x and of g), by ticket."""
    TILES: tl.constexpr = CHUNK // BLOCK_P
    PROJECTIONS: tl.constexpr = 2 * SPLITS * TILES
    CORE: tl.constexpr = BLOCK_K * (BLOCK_K if DENSE else 1)
    x_blocks = tl.cdiv(N, BLOCK_C)
    g_blocks = tl.cdiv(M, BLOCK_C)
    blocks = x_blocks + g_blocks
    ticket = tl.atomic_add(counters_ptr, 1)
    batch = ticket // (chunks * (PROJECTIONS + blocks))
    ticket -= batch * (chunks * (PROJECTIONS + blocks))
    batch = batch.to(tl.int64)
    g_ptr += batch * stride_gb
    x_ptr += batch * stride_xb
    u_ptr += batch * stride_ub
    v_ptr += batch * stride_vb
    sigma_ptr += batch * K * (K if DENSE else 1)
    # One counter of arrivals for each tile of rows and side, one of tiles that are ready for each
    # chunk and side, one of chunks that are done for each block of columns.
    arrived_ptr = counters_ptr + 1 + batch * (chunks * (2 * TILES + 2) + blocks)
    ready_ptr = arrived_ptr + chunks * 2 * TILES
    done_ptr = ready_ptr + chunks * 2
    plane_size = (chunks * CHUNK).to(tl.int64) * BLOCK_K
    planes = 2 if SPLIT else 1
    # The planes of a, then those of d.
    planes_ptr += batch * (2 * planes) * plane_size

    # Chunk 0 is projected first; then chunk i + 1 is projected before chunk i is reduced.
    later = ticket - PROJECTIONS
    chunk = tl.where(later < 0, -1, later // (PROJECTIONS + blocks))
    piece = tl.where(later < 0, ticket, later - chunk * (PROJECTIONS + blocks))
    projecting = (later < 0) | ((chunk + 1 < chunks) & (piece < PROJECTIONS))
    if projecting:
        chunk += 1
        side = piece % 2
        part = piece // 2 % SPLITS
        tile = chunk * TILES + piece // (2 * SPLITS)
        rows = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        slot = batch * (chunks * 2 * TILES) + tile * 2 + side
        parts_ptr += slot * (SPLITS * BLOCK_P * BLOCK_K)
        arrived_ptr += tile * 2 + side
        if side == 0:
            h = project(
                x_ptr, v_ptr, rows, part, P, N, K, stride_xp, stride_xn, stride_vn, stride_vk,
                SPLITS, BLOCK_P, BLOCK_S, BLOCK_K,
            )  # fmt: skip
        else:
            h = project(
                g_ptr, u_ptr, rows, part, P, M, K, stride_gp, stride_gm, stride_um, stride_uk,
                SPLITS, BLOCK_P, BLOCK_S, BLOCK_K,
            )  # fmt: skip
        tl.store(parts_ptr + part * BLOCK_P * BLOCK_K + inside(BLOCK_P, BLOCK_K), h)
        if announce(arrived_ptr) == SPLITS - 1:
            tl.debug_barrier()
            finish_projection(
                parts_ptr, sigma_ptr, planes_ptr + side * planes * plane_size, tile * BLOCK_P,
                plane_size, side, K, DENSE, SPLIT, SPLITS, BLOCK_P, BLOCK_F, BLOCK_K,
            )  # fmt: skip
            announce(ready_ptr + chunk * 2 + side)
    else:
        piece -= tl.where(chunk + 1 < chunks, PROJECTIONS, 0)
        sums_ptr += (batch * blocks + piece) * (BLOCK_C * (BLOCK_K + 1))
        done_ptr += piece
        ready_ptr += chunk * 2
        if piece < x_blocks:
            reduce_x(
                x_ptr, v_ptr, planes_ptr + planes * plane_size, ready_ptr + 1, sums_ptr, done_ptr,
                dx_ptr + batch * P * N, dv_ptr + batch * K * N,
                P, N, K, stride_xp, stride_xn, stride_vk, stride_vn, plane_size,
                piece, chunk, chunks, SPLIT, CHUNK, BLOCK_P, BLOCK_R, BLOCK_C, BLOCK_K,
            )  # fmt: skip
        else:
            block = piece - x_blocks
            reduce_g(
                g_ptr, u_ptr, sigma_ptr, planes_ptr, ready_ptr, sums_ptr,
                sums_ptr + BLOCK_C * BLOCK_K, done_ptr,
                du_ptr + batch * M * K, dsigma_ptr + (batch * g_blocks + block) * CORE,
                dbias_ptr + batch * M,
                P, M, K, stride_gp, stride_gm, stride_um, stride_uk, plane_size,
                block, chunk, chunks,
                DENSE, BIAS, SPLIT, CHUNK, BLOCK_P, BLOCK_R, BLOCK_C, BLOCK_K,
            )  # fmt: skip
