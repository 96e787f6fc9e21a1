"""Gram matrices G = X^T X of X (depth, side), half the tiles computed and mirrored.

    G[i, j] = sum_k X[k, i] X[k, j]

The grid is (batch * tiles^2, splits); a program owns one BLOCK x BLOCK tile on or above the
diagonal and one part of the depth, and those below return at once. The product of two float32
numbers is exact in float64, in which everything is summed: G is right to 1e-16 |x_i| |x_j| times the depth,
where a Gram matrix in float32 would lose every singular value below 3.5e-4 sigma_1 (and 3xTF32,
which sums in float32, the same). The float64 tensor cores of an H100 run at the rate of its
float32 units.

Flops: depth * side * (side + BLOCK), a half of a full product. Bytes: about side / BLOCK reads of
X, from L2 where X fits it, and 8 side^2 written for each part of the depth.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gram(
    x_ptr,
    offsets_ptr,
    out_ptr,
    depth,
    side,
    parts,
    share,
    stride_part,
    stride_xk,
    stride_xi,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """out (batch, splits, side, side) float64; X is the sum of ``parts`` blocks of memory.

    offsets (batch,): where X begins, in elements from x_ptr, multiples of ALIGN. ``share`` of the
    depth belongs to a split.
    """
    tile = tl.program_id(0) % (TILES * TILES)
    row, column = tile // TILES, tile % TILES
    if row > column:
        return
    entry = (tl.program_id(0) // (TILES * TILES)).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    x_ptr += tl.multiple_of(tl.load(offsets_ptr + entry), ALIGN)
    i = row * BLOCK + tl.arange(0, BLOCK)
    j = column * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float64)
    start = split * share
    for begin in range(0, share, DEPTH):
        k = begin + tl.arange(0, DEPTH)
        inside = (k < share) & (start + k < depth)
        rows = x_ptr + (start + k) * stride_xk
        left = _load(rows, i, stride_xi, inside, side, parts, stride_part, BLOCK, DEPTH)
        right = _load(rows, j, stride_xi, inside, side, parts, stride_part, BLOCK, DEPTH)
        total = tl.dot(tl.trans(left), right, total, input_precision="ieee", out_dtype=tl.float64)
    out_ptr += (entry * tl.num_programs(1) + split) * side * side
    inside = (i[:, None] < side) & (j[None, :] < side)
    upper, lower = i[:, None] <= j[None, :], i[:, None] < j[None, :]
    tl.store(out_ptr + i[:, None] * side + j[None, :], total, mask=inside & upper)
    tl.store(out_ptr + j[None, :] * side + i[:, None], total, mask=inside & lower)


@triton.jit
def _load(
    rows, i, stride_xi, inside, side, parts, stride_part, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):
    """Return a tile (DEPTH, BLOCK) of X in float64."""
    x = tl.zeros((DEPTH, BLOCK), tl.float64)
    pointers = rows[:, None] + i.to(tl.int64)[None, :] * stride_xi
    mask = inside[:, None] & (i < side)[None, :]
    for part in range(parts):
        x += tl.load(pointers + part * stride_part, mask=mask, other=0.0).to(tl.float64)
    return x
