"""Pieces of the backward kernel that sum over the rows of one chunk, for BLOCK_C columns of x or g.

x (P, N) with d gives dx = d Vh and d^T x, g (P, M) with a gives g^T a: BLOCK_C x BLOCK_K numbers in
registers, to which those of the chunks before are added when these are done. The last chunk's piece
writes dVh, or dU = G Sigma^T, its part of dSigma = U^T G, and dbias.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.factored.triton_chunk_kernels import (
    add_rows,
    announce,
    expand,
    inside,
    load_planes,
    sigma_product,
    wait,
)
from spectral_kernels.factored.triton_kernels import (
    PRECISION,
    load_tile,
    split,
    store_tile,
    times_sigma,
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
    # Nested: BIAS is known to the compiler, the chunk is not.
    if BIAS:  # noqa: SIM102
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
            du = times_sigma(total, sigma_ptr, K, DENSE, True, SPLIT)
            store_tile(du_ptr, du, cols, ranks, K, 1, M, K)
            if DENSE:
                high, low = split(total, u_ptr.dtype.element_ty)
                d_sigma = tl.dot(tl.trans(u), high, tl.dot(tl.trans(u), low))
                tl.store(dsigma_ptr + inside(BLOCK_K, BLOCK_K), d_sigma)
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
    # A few rows at a time, for the registers' sake: see ``sigma_product``.
    ROWS: tl.constexpr = 16
    ranks = tl.arange(0, BLOCK_K)
    d_sigma = tl.zeros((BLOCK_K, BLOCK_K if DENSE else 1), dtype=tl.float32)
    for start in range(0, BLOCK_C, ROWS):
        inner = start + tl.arange(0, ROWS)
        rows = block * BLOCK_C + inner
        G = tl.load(sums_ptr + start * BLOCK_K + inside(ROWS, BLOCK_K), cache_modifier=".cg")
        u = load_tile(u_ptr, rows, ranks, stride_um, stride_uk, M, K).to(tl.float32)
        if DENSE:
            d_sigma = tl.dot(tl.trans(u), G, d_sigma, input_precision=PRECISION)
        else:
            d_sigma += tl.sum(u * G, axis=0)[:, None]
        du = sigma_product(sums_ptr, sigma_ptr, inner, K, DENSE, True, False, 0, 1, BLOCK_K)
        store_tile(du_ptr, du, rows, ranks, K, 1, M, K)
    tl.store(dsigma_ptr + inside(d_sigma.shape[0], d_sigma.shape[1]), d_sigma)
