"""y = x (U Sigma Vh)^T + bias in one launch: y = ((x Vh^T) Sigma^T) U^T + bias.

x (B, p, n), U (B, m, k), Sigma (B, k, k) or (B, k), Vh (B, k, n), bias (B, m), y (B, p, m); B = 1
where factors are shared. A program owns BLOCK_P rows of one batch entry: it reads them once, keeps
their k numbers in registers, and writes their m. U and Vh are read by every program, from the L2
cache. Device memory: p (n + m) entries and once the factors; operations: 2 p k n, and 2 p k m times
the products below.

Every sum is float32. Factors of 16 bits multiply x exactly; the k numbers between, h, are float32
and stay so: times bfloat16 as h = high + low, both bfloat16 (an error of 2^-17 of h, two products),
times anything else as three TF32 products (about 2^-21), since float16 ends at 65,504.
"""

from __future__ import annotations

import triton
import triton.language as tl

# For products of float32; those of 16-bit operands are exact, whatever it says.
PRECISION = tl.constexpr("tf32x3")

# How long the cache keeps what is loaded, where nothing else is asked for.
NORMAL = tl.constexpr("")


@triton.jit
def load_tile(
    base_ptr, rows, cols, stride_r, stride_c, end_r, end_c, EVICTION: tl.constexpr = NORMAL
):  # fmt: skip
    """Return entries (rows, cols), 0 beyond the ends."""
    mask = (rows[:, None] < end_r) & (cols[None, :] < end_c)
    places = rows.to(tl.int64)[:, None] * stride_r + cols.to(tl.int64)[None, :] * stride_c
    return tl.load(base_ptr + places, mask=mask, other=0.0, eviction_policy=EVICTION)


@triton.jit
def store_tile(base_ptr, tile, rows, cols, stride_r, stride_c, end_r, end_c):
    """Write a tile as the type of the pointer, nothing beyond the ends."""
    mask = (rows[:, None] < end_r) & (cols[None, :] < end_c)
    places = rows.to(tl.int64)[:, None] * stride_r + cols.to(tl.int64)[None, :] * stride_c
    tl.store(base_ptr + places, tile.to(base_ptr.dtype.element_ty), mask=mask)


@triton.jit
def split(h, NARROW: tl.constexpr):
    """Return high and low of type NARROW with h = high + low, nearly."""
    high = h.to(NARROW)
    rest = h - high.to(tl.float32)
    # Inf - Inf is NaN, and an infinite h is to stay what it is.
    return high, tl.where(tl.abs(h) == float("inf"), 0.0, rest).to(NARROW)


@triton.jit
def times_sigma(
    h, sigma_ptr, K, DENSE: tl.constexpr, TRANSPOSED: tl.constexpr, SPLIT: tl.constexpr
):
    """Return h Sigma^T (or h Sigma) for float32 h (rows, ranks); Sigma is contiguous."""
    ranks = tl.arange(0, h.shape[1])
    if DENSE:
        sigma = load_tile(
            sigma_ptr, ranks, ranks, 1 if TRANSPOSED else K, K if TRANSPOSED else 1, K, K
        )  # fmt: skip
        if SPLIT:
            high, low = split(h, sigma_ptr.dtype.element_ty)
            h = tl.dot(high, sigma, tl.dot(low, sigma))
        else:
            h = tl.dot(h, sigma.to(tl.float32), input_precision=PRECISION)
    else:
        sigma = tl.load(sigma_ptr + ranks, mask=ranks < K, other=0.0)
        h = h * sigma.to(tl.float32)[None, :]
    return h


@triton.jit
def usv_forward(
    x_ptr, u_ptr, sigma_ptr, v_ptr, bias_ptr,
    y_ptr,
    P, M, N, K,
    stride_xb, stride_xp, stride_xn,
    stride_ub, stride_um, stride_uk,
    stride_vb, stride_vk, stride_vn,
    stride_yb, stride_yp, stride_ym,
    DENSE: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid: B row blocks."""
    blocks = tl.cdiv(P, BLOCK_P)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    ranks = tl.arange(0, BLOCK_K)
    x_ptr += batch * stride_xb
    v_ptr += batch * stride_vb
    h = tl.zeros((BLOCK_P, BLOCK_K), dtype=tl.float32)
    for start in range(0, N, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C)
        x = load_tile(x_ptr, rows, cols, stride_xp, stride_xn, P, N)
        v = load_tile(v_ptr, cols, ranks, stride_vn, stride_vk, N, K)
        h = tl.dot(x, v, h, input_precision=PRECISION)
    # An infinite x has made NaN of the zeros that ranks are padded with.
    h = tl.where(ranks[None, :] < K, h, 0.0)
    sigma_ptr += batch * K * (K if DENSE else 1)
    h = times_sigma(h, sigma_ptr, K, DENSE, True, SPLIT)
    if SPLIT:
        high, low = split(h, x_ptr.dtype.element_ty)
    u_ptr += batch * stride_ub
    y_ptr += batch * stride_yb
    for start in range(0, M, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C)
        u = load_tile(u_ptr, ranks, cols, stride_uk, stride_um, K, M)
        if SPLIT:
            y = tl.dot(high, u, tl.dot(low, u))
        else:
            y = tl.dot(h, u.to(tl.float32), input_precision=PRECISION)
        if BIAS:
            bias = tl.load(bias_ptr + batch * M + cols, mask=cols < M, other=0.0)
            y += bias.to(tl.float32)[None, :]
        store_tile(y_ptr, y, rows, cols, stride_yp, stride_ym, P, M)
