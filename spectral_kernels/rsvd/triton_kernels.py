"""Products Y = A X of A (rows, depth) with a narrow block X (depth, width): the passes over A.

The first block is made in the kernel: given columns, then Y = A Omega with Omega[k, c] the normal
of that place (triton_normal_kernels.py), so no random block is written or read.

The grid is (batch * row tiles * column tiles, splits); a program owns BLOCK_M x BLOCK_L of Y and
one part of the depth, whose sums are added up by whoever reads Y. Products are 3xTF32, right to
2^-22 |a| |x|, in pieces of DEPTH that float64 sums: the tensor cores cut off what float32 cannot
hold, always downwards, which over a depth of thousands is more than float32 rounds.

Bytes: one read of A (for each BLOCK_L columns), 4 * splits * rows * width written. Flops:
2 rows depth width, three times over on the tensor cores. A random number costs about 50
operations and is used BLOCK_M times.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.rsvd.triton_normal_kernels import normals

# What PASS says: one where max|a| is known; the first, which finds it; the same once more for the
# matrices where it turned out to be far from one.
LATER = tl.constexpr(0)
FIRST = tl.constexpr(1)
AGAIN = tl.constexpr(2)


@triton.jit(do_not_specialize=["seed"])
def product(
    a_ptr,
    offsets_ptr,
    x_ptr,
    places_ptr,
    out_ptr,
    largest_ptr,
    squares_ptr,
    rows,
    depth,
    width,
    given,
    share,
    stride_am,
    stride_ak,
    seed,
    PASS: tl.constexpr,
    RANDOM: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    DEPTH: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """out (batch, splits, rows, width) float32: scale * A X.

    x (batch, depth, given) float32, followed by random columns with RANDOM. places (batch, 2)
    int64: the numbers of the matrix and of its entry. largest (batch,) int32: the bits of max|a| in
    float32, zero before the first pass; scale is the power of two that ``scale_of`` makes of it,
    1 in the first. squares (batch, splits, row tiles) float64, or None: sums of a^2, written by
    the first pass. TILES is the number of column tiles.
    """
    tiles = tl.cdiv(rows, BLOCK_M) * TILES
    entry, split = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0) % tiles
    scale = 1.0
    if PASS != FIRST:
        bits = tl.load(largest_ptr + entry)
        # Not one condition: the first is settled at compile time.
        if PASS == AGAIN:  # noqa: SIM102
            if is_ordinary(bits):
                return
        scale = scale_of(bits)
    a_ptr += tl.multiple_of(tl.load(offsets_ptr + entry), ALIGN)
    x_ptr += entry * depth * given
    i = (tile // TILES).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (tile % TILES) * BLOCK_L + tl.arange(0, BLOCK_L)
    total = tl.zeros((BLOCK_M, BLOCK_L), tl.float64)
    most = tl.zeros((BLOCK_M, DEPTH), tl.int32)
    mass = tl.zeros((BLOCK_M, DEPTH), tl.float64)
    start = split * share
    for begin in range(0, share, DEPTH):
        k = start + begin + tl.arange(0, DEPTH)
        inside = (begin + tl.arange(0, DEPTH) < share) & (k < depth)
        a = tl.load(
            a_ptr + i[:, None] * stride_am + k[None, :] * stride_ak,
            mask=(i < rows)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        if PASS == FIRST:
            # Not tl.abs, which may give NaN either sign.
            most = tl.maximum(most, a.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
            if squares_ptr is not None:
                mass += a.to(tl.float64) * a.to(tl.float64)
        a *= scale
        x = tl.load(
            x_ptr + k[:, None] * given + c[None, :],
            mask=inside[:, None] & (c < given)[None, :],
            other=0.0,
        )
        if RANDOM:
            group = (tile % TILES) * (BLOCK_L // 4) + tl.arange(0, BLOCK_L // 4)
            matrix, number = tl.load(places_ptr + 2 * entry), tl.load(places_ptr + 2 * entry + 1)
            random = normals(seed, matrix.to(tl.int32), number.to(tl.int32), k.to(tl.int32), group)
            x = tl.where((c >= given)[None, :], random, x)
        part = tl.dot(a, x, input_precision="tf32x3", out_dtype=tl.float32)
        total += part.to(tl.float64)
    if PASS == FIRST:  # noqa: SIM102
        if tile % TILES == 0:
            # Order does not matter to a maximum of integers: the same at every run.
            tl.atomic_max(largest_ptr + entry, tl.max(tl.max(most, 1), 0))
            if squares_ptr is not None:
                sums = (entry * tl.num_programs(1) + split) * (tiles // TILES)
                tl.store(squares_ptr + sums + tile // TILES, tl.sum(tl.sum(mass, 1), 0))
    out_ptr += (entry * tl.num_programs(1) + split) * rows * width
    tl.store(
        out_ptr + i[:, None] * width + c[None, :],
        total.to(tl.float32),
        mask=(i < rows)[:, None] & (c < width)[None, :],
    )


@triton.jit
def is_ordinary(bits):
    """Whether no product leaves the range of float32: max|a| 0, 2^-60 to 2^60, or not finite."""
    extreme = (bits < (67 << 23)) | ((bits >= (187 << 23)) & (bits < (255 << 23)))
    return (bits == 0) | (extreme == 0)


@triton.jit
def scale_of(bits):
    """Return 1 for an ordinary max|a|, else about its reciprocal, a power of two."""
    power = (tl.maximum(254 - (bits >> 23), 1) << 23).to(tl.float32, bitcast=True)
    return tl.where(is_ordinary(bits), 1.0, power)
