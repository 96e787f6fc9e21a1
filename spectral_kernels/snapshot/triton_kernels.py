"""Copies of many matrices, widened and packed, with max|a|, ||A||_F and whether all is finite.

One launch over ragged matrices of any type and strides: a matrix is cut into tiles of SIDE * SIDE
entries, consecutive ones of the copy (or, of a transposed source, square tiles), a program owns
TILES of them. It reads 2, 4 or 8 bytes an entry and writes 4 or 8, with one multiplication and
addition in float64: bound by memory.

Squares of float32 cannot overflow a float64. Those of float64 are taken relative to a power of
two, the largest seen so far, as in LAPACK's lassq. Sums are float64 and their order does not depend
on which program runs when: a chunk leaves (max, sum, scale), and the last program of a matrix to
arrive, which an integer counter tells, adds the chunks in order. It leaves the counter at zero.

NaN and Inf need no test of their own: the sum of squares is finite exactly if all entries are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectral_kernels.runtime.triton.device import FLOAT64, load_float32

# Columns of a job: byte offset of the matrix; dtype code; columns; entries; two strides; layout;
# byte offset of the copy; its first chunk among all chunks; how many it has.
FIELDS = tl.constexpr(10)
# Layouts: by rows without gaps, it and its copy at multiples of 16 bytes; by columns
# (stride_m = 1); any other.
ALIKE = tl.constexpr(0)
TRANSPOSED = tl.constexpr(1)
STRIDED = tl.constexpr(2)
# What a chunk leaves.
PARTS = tl.constexpr(3)


@triton.jit
def snapshot(
    base_ptr, jobs_ptr, chunks_ptr, parts_ptr, arrived_ptr, statistics_ptr,
    SIDE: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """chunks (programs, 2): matrix and number within it. statistics (matrices, 3) float64."""
    program = tl.program_id(0).to(tl.int64)
    matrix, chunk = tl.load(chunks_ptr + 2 * program), tl.load(chunks_ptr + 2 * program + 1)
    job = jobs_ptr + matrix * FIELDS
    first, count = tl.load(job + 8), tl.load(job + 9)
    start = chunk * (SIDE * SIDE * TILES)
    end = tl.minimum(start + SIDE * SIDE * TILES, tl.load(job + 3))
    scale = tl.full((), 1.0, tl.float64)
    if tl.load(job + 1) == FLOAT64:
        top, total, scale = _copy_float64(base_ptr, job, start, end, SIDE * SIDE)
    elif tl.load(job + 6) == TRANSPOSED:
        top, total = _transpose_float32(base_ptr, job, chunk, SIDE, TILES)
    else:
        top, total = _copy_float32(base_ptr, job, start, end, SIDE * SIDE)
    parts = parts_ptr + (first + chunk) * PARTS
    tl.store(parts, top)
    tl.store(parts + 1, total)
    tl.store(parts + 2, scale)
    # The parts are written before the count is seen to rise, by whichever program sees it.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrived_ptr + matrix, 1, sem="acq_rel")
    if arrived == count - 1:
        tl.debug_barrier()
        _finish(parts_ptr + first * PARTS, count, statistics_ptr + matrix * 3, BLOCK)
        tl.store(arrived_ptr + matrix, 0)


@triton.jit
def _copy_float32(base_ptr, job, start, end, TILE: tl.constexpr):
    """Copy a chunk; return max|a| and the sum of squares. The maximum of NaN is unspecified."""
    source, code, target = tl.load(job), tl.load(job + 1), tl.load(job + 7)
    top = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE,), tl.float64)
    offsets = tl.arange(0, TILE)
    copy_ptr = (base_ptr + target).to(tl.pointer_type(tl.float32))
    # Whole tiles without a mask and from places that the compiler sees to be multiples of 16, so
    # that they are read and written in pieces of 16 bytes.
    whole = start
    if tl.load(job + 6) == ALIKE:
        whole += (end - start) // TILE * TILE
    aligned_ptr = base_ptr + source // 16 * 16
    aligned_copy_ptr = (base_ptr + target // 16 * 16).to(tl.pointer_type(tl.float32))
    for place in range(start, whole, TILE):
        x = load_float32(aligned_ptr, place + offsets, code, None)
        tl.store(aligned_copy_ptr + place + offsets, x)
        top = tl.maximum(top, tl.abs(x))
        wide = x.to(tl.float64)
        total += wide * wide
    for place in range(whole, end, TILE):
        index = _index(place, job, TILE)
        inside = place + offsets < end
        x = tl.where(inside, load_float32(base_ptr + source, index, code, inside), 0.0)
        tl.store(copy_ptr + place + offsets, x, mask=inside)
        top = tl.maximum(top, tl.abs(x))
        wide = x.to(tl.float64)
        total += wide * wide
    return tl.max(top, 0).to(tl.float64), tl.sum(total, 0)


@triton.jit
def _transpose_float32(base_ptr, job, chunk, SIDE: tl.constexpr, TILES: tl.constexpr):
    """Copy square tiles of a matrix that lies by columns; return as ``_copy_float32``.

    Columns are read and rows are written in full lines; in between a tile changes its layout
    through shared memory.
    """
    source, code, target = tl.load(job), tl.load(job + 1), tl.load(job + 7)
    columns, stride_n = tl.load(job + 2), tl.load(job + 5)
    rows = tl.load(job + 3) // columns
    top = tl.zeros((SIDE, SIDE), tl.float32)
    total = tl.zeros((SIDE, SIDE), tl.float64)
    copy_ptr = (base_ptr + target).to(tl.pointer_type(tl.float32))
    across = tl.cdiv(columns, SIDE)
    last = tl.minimum((chunk + 1) * TILES, tl.cdiv(rows, SIDE) * across)
    for tile in range(chunk * TILES, last):
        i = (tile // across * SIDE + tl.arange(0, SIDE))[:, None]
        j = (tile % across * SIDE + tl.arange(0, SIDE))[None, :]
        inside = (i < rows) & (j < columns)
        x = tl.where(inside, load_float32(base_ptr + source, i + j * stride_n, code, inside), 0.0)
        tl.store(copy_ptr + i * columns + j, x, mask=inside)
        top = tl.maximum(top, tl.abs(x))
        wide = x.to(tl.float64)
        total += wide * wide
    return tl.max(tl.max(top, 1), 0).to(tl.float64), tl.sum(tl.sum(total, 1), 0)


@triton.jit
def _copy_float64(base_ptr, job, start, end, TILE: tl.constexpr):
    """Copy a chunk; return max|a|, the sum of squares of a / scale, and scale, a power of two."""
    source, target = tl.load(job), tl.load(job + 7)
    top = tl.full((), 0.0, tl.float64)
    total = tl.zeros((TILE,), tl.float64)
    # The smallest normal number: its inverse is finite.
    scale = tl.full((), 2.0**-1022, tl.float64)
    offsets = tl.arange(0, TILE)
    source_ptr = (base_ptr + source).to(tl.pointer_type(tl.float64))
    copy_ptr = (base_ptr + target).to(tl.pointer_type(tl.float64))
    for place in range(start, end, TILE):
        index = _index(place, job, TILE)
        inside = place + offsets < end
        x = tl.load(source_ptr + index, mask=inside, other=0.0)
        tl.store(copy_ptr + place + offsets, x, mask=inside)
        largest = tl.max(tl.abs(x), 0)
        top = tl.maximum(top, largest)
        # The exponent alone, without its mantissa.
        power = (largest.to(tl.int64, bitcast=True) & 0x7FF0000000000000).to(
            tl.float64, bitcast=True
        )
        larger = tl.maximum(scale, power)
        shrink = scale / larger
        y = x / larger
        total = total * (shrink * shrink) + y * y
        scale = larger
    return top, tl.sum(total, 0), scale


@triton.jit
def _index(place, job, TILE: tl.constexpr):
    """Return where the entries from ``place`` on, by rows, are in the source.

    Division of 64 bits is slow, so vectors are divided in 32: a row is shorter than 2^31 - TILE.
    """
    columns, stride_m, stride_n = tl.load(job + 2), tl.load(job + 4), tl.load(job + 5)
    row, column = place // columns, place % columns
    narrow = columns.to(tl.int32)
    local = column.to(tl.int32) + tl.arange(0, TILE)
    row += (local // narrow).to(tl.int64)
    return row * stride_m + (local % narrow).to(tl.int64) * stride_n


@triton.jit
def _finish(parts_ptr, count, statistics_ptr, BLOCK: tl.constexpr):
    """Write max|a|, the norm, and 1 if all is finite, from the parts of all chunks of a matrix."""
    top = tl.zeros((BLOCK,), tl.float64)
    scale = tl.full((BLOCK,), 2.0**-1022, tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        # From L2, where other programs' stores are.
        at = parts_ptr + i * PARTS
        top = tl.maximum(top, tl.load(at, mask=i < count, other=0.0, cache_modifier=".cg"))
        part = tl.load(at + 1, mask=i < count, other=0.0, cache_modifier=".cg")
        unit = tl.load(at + 2, mask=i < count, other=0.0, cache_modifier=".cg")
        larger = tl.maximum(scale, unit)
        total = total * (scale / larger) * (scale / larger) + part * (unit / larger) * (
            unit / larger
        )
        scale = larger
    whole = tl.max(scale, 0)
    squares = tl.sum(total * (scale / whole) * (scale / whole), 0)
    finite = squares < float("inf")
    nan = tl.full((), float("nan"), tl.float64)
    tl.store(statistics_ptr, tl.where(finite, tl.max(top, 0), nan))
    tl.store(statistics_ptr + 1, tl.where(finite, whole * tl.sqrt(squares), nan))
    tl.store(statistics_ptr + 2, tl.where(finite, tl.full((), 1.0, tl.float64), 0.0))
