"""out = ALPHA a b (+ out), a product of each matrix of a batch that asks for it.

a (B, rows, depth) and b (B, depth, cols) with any strides, float32 or float64, out (B, rows, cols)
float64 and contiguous. The grid is B * (tiles of out); a program owns one tile SIDE x SIDE and
leaves at once where its matrix asks for nothing: what a host that knew would not launch.

Products and sums are float64 (``input_precision="ieee"``; on sm_80 and newer the tensor cores',
m8n8k4), in the order of depth. 2 rows cols depth operations; each tile reads SIDE * depth entries
of either factor.
"""

# Device code is no Python: Triton's compiler reads it.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def asked_products(
    asked_ptr,
    a_ptr,
    b_ptr,
    out_ptr,
    rows,
    cols,
    depth,
    stride_ab,
    stride_ai,
    stride_ak,
    stride_bb,
    stride_bk,
    stride_bj,
    ALPHA: tl.constexpr,
    ADD: tl.constexpr,
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """asked (B,) int32; the rest as above."""
    tiles_across = (cols + SIDE - 1) // SIDE
    tiles = (rows + SIDE - 1) // SIDE * tiles_across
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    if tl.load(asked_ptr + batch) == 0:
        return
    i = (tile // tiles_across * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    j = (tile % tiles_across * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    k = tl.arange(0, DEPTH).to(tl.int64)
    a_tile = a_ptr + batch * stride_ab + i[:, None] * stride_ai + k[None, :] * stride_ak
    b_tile = b_ptr + batch * stride_bb + k[:, None] * stride_bk + j[None, :] * stride_bj
    total = tl.full((SIDE, SIDE), 0.0, tl.float64)
    for start in range(0, depth, DEPTH):
        here = start + k < depth
        a = tl.load(a_tile, mask=(i < rows)[:, None] & here[None, :], other=0.0)
        b = tl.load(b_tile, mask=here[:, None] & (j < cols)[None, :], other=0.0)
        total = tl.dot(
            a.to(tl.float64),
            b.to(tl.float64),
            total,
            input_precision="ieee",
            out_dtype=tl.float64,
        )
        a_tile += DEPTH * stride_ak
        b_tile += DEPTH * stride_bk
    inside = (i < rows)[:, None] & (j < cols)[None, :]
    out_tile = out_ptr + (batch * rows + i[:, None]) * cols + j[None, :]
    total *= ALPHA
    if ADD:
        total += tl.load(out_tile, mask=inside, other=0.0)
    tl.store(out_tile, total, mask=inside)
