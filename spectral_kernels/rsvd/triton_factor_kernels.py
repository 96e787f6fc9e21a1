"""Cholesky QR of a narrow block Y (rows, width): Y = Q R with R from the Gram matrix.

    Y^T Y = R^T R,  Q = Y R^-1        (Golub & Van Loan 2013, 4.2; Fukaya et al. 2014, 2020)

Once where the columns of Q need to be independent only, twice where they shall be orthonormal
(the first leaves 1e-16 cond(Y)^2). A column that is within FLOOR of the span of those before it
holds nothing but rounding: its row of R and its column of R^-1 are zero, and Q gets a random
column there, for the second round to orthogonalise: so a matrix of low rank, or zero, has as many
orthonormal vectors as any other, and no shift is needed.

``factor``: a program for each matrix; R row by row from the rows before it, then R T = I from the
last row up, both read again from L1, since they do not fit registers beside each other; width^3 / 3
flops each, and 2 width steps whose latency is what is felt. ``apply``: a program for each tile of
Q; float64, since R^-1 may be as large as 1 / sqrt(FLOOR).
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.rsvd.triton_normal_kernels import normals

# Squared, of a column's own length: 3e-7, the rounding of float32 and what a Gram matrix in
# float64 can tell of it.
FLOOR = tl.constexpr(2.0**-43)


@triton.jit
def factor(gram_ptr, r_ptr, inverse_ptr, width, L: tl.constexpr, CHUNK: tl.constexpr):
    """gram, r and inverse (batch, width, width) float64."""
    entry = tl.program_id(0).to(tl.int64) * width * width
    gram_ptr += entry
    r_ptr += entry
    inverse_ptr += entry
    i = tl.arange(0, L)
    inside = i < width
    for j in range(width):
        row = tl.load(gram_ptr + j * width + i, mask=inside, other=0.0)
        length = tl.sum(tl.where(i == j, row, 0.0), 0)
        for begin in range(0, j, CHUNK):
            k = begin + tl.arange(0, CHUNK)
            before = tl.load(
                r_ptr + k[:, None] * width + i[None, :],
                mask=(k < j)[:, None] & inside[None, :],
                other=0.0,
            )
            own = tl.load(r_ptr + k * width + j, mask=k < j, other=0.0)
            row -= tl.sum(own[:, None] * before, 0)
        pivot = tl.sum(tl.where(i == j, row, 0.0), 0)
        # False for NaN too, so that R is finite whatever the matrix is.
        alive = pivot > FLOOR * length
        root = tl.sqrt(tl.where(alive, pivot, 1.0))
        row = tl.where(alive, tl.where(i >= j, row / root, 0.0), 0.0)
        tl.store(r_ptr + j * width + i, row, mask=inside)
        # The next column reads what all threads have written.
        tl.debug_barrier()
    for step in range(width):
        j = width - 1 - step
        row = tl.where(i == j, 1.0, 0.0).to(tl.float64)
        for begin in range(j + 1, width, CHUNK):
            k = begin + tl.arange(0, CHUNK)
            after = tl.load(
                inverse_ptr + k[:, None] * width + i[None, :],
                mask=(k < width)[:, None] & inside[None, :],
                other=0.0,
            )
            own = tl.load(r_ptr + j * width + k, mask=k < width, other=0.0)
            row -= tl.sum(own[:, None] * after, 0)
        pivot = tl.load(r_ptr + j * width + j)
        row = tl.where(pivot > 0, row / tl.where(pivot > 0, pivot, 1.0), 0.0)
        tl.store(inverse_ptr + j * width + i, row, mask=inside)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["seed"])
def apply(
    y_ptr,
    t_ptr,
    out_ptr,
    parts,
    rows,
    width,
    columns,
    stride_tb,
    stride_tk,
    stride_tc,
    stride_om,
    stride_oc,
    seed,
    fill_scale,
    FILL: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """out (batch, rows, columns) float32 = Y T; y (batch, parts, rows, width) is added up.

    t (batch, width, columns) float64. With FILL, T is an inverse of ``factor``, and columns with
    T[c, c] = 0 become random ones, of length about one where fill_scale is 1 / sqrt(rows).
    """
    tiles = tl.cdiv(rows, BLOCK_M) * TILES
    entry, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    i = (tile // TILES).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (tile % TILES) * BLOCK_L + tl.arange(0, BLOCK_L)
    y_ptr += entry * parts * rows * width
    t_ptr += entry * stride_tb
    total = tl.zeros((BLOCK_M, BLOCK_L), tl.float64)
    for begin in range(0, width, DEPTH):
        k = begin + tl.arange(0, DEPTH)
        inside = (i < rows)[:, None] & (k < width)[None, :]
        y = tl.zeros((BLOCK_M, DEPTH), tl.float64)
        for part in range(parts):
            place = part * rows * width + i[:, None] * width + k[None, :]
            y += tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float64)
        t = tl.load(
            t_ptr + k[:, None] * stride_tk + c[None, :] * stride_tc,
            mask=(k < width)[:, None] & (c < columns)[None, :],
            other=0.0,
        )
        total = tl.dot(y, t, total, input_precision="ieee", out_dtype=tl.float64)
    q = total.to(tl.float32)
    if FILL:
        size = tl.load(t_ptr + c * (stride_tk + stride_tc), mask=c < columns, other=1.0)
        dead = size == 0
        if tl.max(dead.to(tl.int32), 0) == 1:
            group = (tile % TILES) * (BLOCK_L // 4) + tl.arange(0, BLOCK_L // 4)
            # A stream of its own: no start block has so high a number.
            fill = normals(seed, -1, entry.to(tl.int32), i.to(tl.int32), group)
            q = tl.where(dead[None, :], fill * fill_scale, q)
    out_ptr += entry * rows * columns
    tl.store(
        out_ptr + i[:, None] * stride_om + c[None, :] * stride_oc,
        q,
        mask=(i < rows)[:, None] & (c < columns)[None, :],
    )
