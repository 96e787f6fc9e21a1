"""The two passes of a leading update that are no products: fresh columns, and what is left of A.

``refresh`` copies a block V (n, l) and, at every ``every``-th update, makes its last columns random
(triton_normal_kernels.py): 8 n l bytes. ``leftover`` sums the squares of A - U B: one more read of
A and 2 m n l flops in float64, for the matrices whose ||A||^2 - ||B||^2 is lost in rounding alone;
the programs of the others return at once. The grids are
batch * row tiles, and (row tiles, column tiles, batch).
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.rsvd.triton_kernels import scale_of
from spectral_kernels.rsvd.triton_normal_kernels import normals


@triton.jit
def refresh(
    v_ptr, updates_ptr, out_ptr, n, width, kept, every, ROWS: tl.constexpr, L: tl.constexpr
):
    """v and out (batch, n, width) float32; updates (1,) int64: how many there were before."""
    blocks = tl.cdiv(n, ROWS)
    entry = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, L)
    place = entry * n * width + i[:, None] * width + c[None, :]
    inside = (i < n)[:, None] & (c < width)[None, :]
    x = tl.load(v_ptr + place, mask=inside, other=0.0)
    updates = tl.load(updates_ptr)
    if updates % every == 0:  # noqa: SIM102
        if updates > 0:
            # The same for every matrix with n columns.
            fresh = normals(updates, -2, 0, i.to(tl.int32), tl.arange(0, L // 4))
            x = tl.where((c >= kept)[None, :], fresh, x)
    tl.store(out_ptr + place, x, mask=inside)


@triton.jit
def leftover(
    a_ptr,
    offsets_ptr,
    u_ptr,
    b_ptr,
    needed_ptr,
    largest_ptr,
    out_ptr,
    rows,
    columns,
    width,
    parts,
    stride_am,
    stride_an,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """out (batch, row tiles, column tiles) float64: sums of squares of scale * A - U B.

    u (batch, rows, width) float32; b (batch, parts, columns, width) float32 is B^T and added up.
    needed (batch,) int32; out is not written where it is zero.
    """
    entry = tl.program_id(2).to(tl.int64)
    if tl.load(needed_ptr + entry) == 0:
        return
    i = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float64)
    u_ptr += entry * rows * width
    b_ptr += entry * parts * columns * width
    for begin in range(0, width, DEPTH):
        k = begin + tl.arange(0, DEPTH)
        u = tl.load(
            u_ptr + i[:, None] * width + k[None, :],
            mask=(i < rows)[:, None] & (k < width)[None, :],
            other=0.0,
        ).to(tl.float64)
        b = tl.zeros((DEPTH, BLOCK_N), tl.float64)
        for part in range(parts):
            b += tl.load(
                b_ptr + part * columns * width + j[None, :] * width + k[:, None],
                mask=(j < columns)[None, :] & (k < width)[:, None],
                other=0.0,
            ).to(tl.float64)
        product = tl.dot(u, b, product, input_precision="ieee", out_dtype=tl.float64)
    a_ptr += tl.multiple_of(tl.load(offsets_ptr + entry), ALIGN)
    a = tl.load(
        a_ptr + i[:, None] * stride_am + j[None, :] * stride_an,
        mask=(i < rows)[:, None] & (j < columns)[None, :],
        other=0.0,
    ).to(tl.float32)
    scale = scale_of(tl.load(largest_ptr + entry))
    rest = (a * scale).to(tl.float64) - product
    at = (entry * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
    tl.store(out_ptr + at, tl.sum(tl.sum(rest * rest, 1), 0))
