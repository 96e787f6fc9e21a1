"""The gradients of y = x (U Sigma Vh)^T + bias in one launch that reads x and g from memory once.

With a = x Vh^T, c = g U and d = c Sigma (p x k):
    dx = d Vh    dVh = d^T x    G = g^T a    dU = G Sigma^T    dSigma = U^T G    dbias = sum of g
Sums over rows need what sums over columns gave, so x and g are read twice: plain products read them
twice from device memory; here rows go by in chunks, and a chunk's second reading finds it in the L2
cache. Device memory: 2 p n + p m entries (x, dx, g); the cache: twice that, and what
``cost.py`` counts.

A program does one piece of work, given by a ticket, and waits for lower tickets alone, which have
all begun: no order of programs on the device can stop it. Per chunk: pieces that *project* (BLOCK_P
rows of x or g, one of SPLITS parts of the columns, to a or d), then pieces that *reduce* (BLOCK_C
columns of x or g over the rows of the chunk). The projections of a chunk come before the reductions
of the chunk before it. Sums are float32 and their order is fixed: parts 0, 1, ... by whoever comes
last, chunks 0, 1, ... by waiting. Precision of products: as in ``triton_kernels.py``; a and
d are kept as two planes of bfloat16 (SPLIT) or one of float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.factored.triton_chunk_kernels import (
    announce,
    finish_projection,
    inside,
    project,
)
from spectral_kernels.factored.triton_reduce_kernels import reduce_g, reduce_x


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
    SIGMA: tl.constexpr = BLOCK_K * (BLOCK_K if DENSE else 1)
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
                du_ptr + batch * M * K, dsigma_ptr + (batch * g_blocks + block) * SIGMA,
                dbias_ptr + batch * M,
                P, M, K, stride_gp, stride_gm, stride_um, stride_uk, plane_size,
                block, chunk, chunks,
                DENSE, BIAS, SPLIT, CHUNK, BLOCK_P, BLOCK_R, BLOCK_C, BLOCK_K,
            )  # fmt: skip
