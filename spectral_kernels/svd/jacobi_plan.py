"""Which CUDA kernel solves a shape: threads, shared memory, leading dimensions.

Two families, in csrc/cuda. ``jacobi_registers.cu`` has a matrix in the registers of 8, 16 or 32
lanes and takes sides up to 32. ``jacobi_shared.cu`` has a matrix in the shared memory of a block;
what it moves in a sweep, 2 n (n - 1) (m + n) elements of T (short side n, long side m), is what its
time is made of: at 128 bytes a clock, 512 clocks a round for 64 x 64 in float32. None of the
choices below is measured on a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

REGISTERS_SIDE = 32
# 4 warps: a batch of a few hundred matrices still reaches every multiprocessor.
REGISTERS_THREADS = 128

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}

# (lanes of a pair, rows that a lane holds, most threads), as jacobi_shared.cu has them. Fewer lanes
# spend less on sums; rows that no lane holds are read twice.
_SHARED_VARIANTS = ((8, 8, 256), (8, 16, 512), (16, 16, 512), (32, 16, 512))

# Bytes that the banks of shared memory serve at a time.
_BANKS_BYTES = 128


@dataclass(frozen=True)
class RegistersPlan:
    """A launch of ``jacobi_registers.cu``."""

    kernel: str
    grid: int
    block: int


@dataclass(frozen=True)
class SharedPlan:
    """A launch of ``jacobi_shared.cu``, a block for each matrix.

    ``ld`` and ``ld_v`` are the leading dimensions of W and V in elements; V is in global memory
    where ``ld_v`` is 0.
    """

    kernel: str
    block: int
    shared_bytes: int
    ld: int
    ld_v: int


def registers_plan(
    m: int, n: int, batch: int, dtype: torch.dtype, *, vectors: bool
) -> RegistersPlan | None:
    """Return the launch for ``batch`` matrices m x n, computed in ``dtype``; None: too large."""
    side = max(8, 1 << (max(m, n) - 1).bit_length())
    if side > REGISTERS_SIDE:
        return None
    name = "svd" if vectors else "svdvals"
    matrices_per_block = REGISTERS_THREADS // side
    grid = -(-batch // matrices_per_block)
    return RegistersPlan(
        f"{name}_registers_{_SUFFIXES[dtype]}_{side}", grid, REGISTERS_THREADS
    )


def shared_plan(
    m: int, n: int, dtype: torch.dtype, limit_bytes: int, *, vectors: bool
) -> SharedPlan | None:
    """Return the launch for matrices m x n, computed in ``dtype``.

    None where W does not fit into ``limit_bytes`` of shared memory.
    """
    rows, columns = max(m, n), min(m, n)
    lanes, held, most = next(
        (v for v in _SHARED_VARIANTS if v[0] * v[1] >= rows), _SHARED_VARIANTS[-1]
    )
    ld = _leading_dimension(rows, lanes, dtype.itemsize)
    ld_v = _leading_dimension(columns, lanes, dtype.itemsize) if vectors else 0
    work = 3 * columns + 2 * rows
    sizes = [(columns * (ld + x) + work) * dtype.itemsize for x in (ld_v, 0)]
    if sizes[0] > limit_bytes:
        ld_v = 0
    if sizes[-1] > limit_bytes:
        return None
    pairs = (columns + 1) // 2
    warps = -(-pairs * lanes // 32)
    return SharedPlan(
        f"svd_shared_{_SUFFIXES[dtype]}_{lanes}x{held}",
        min(32 * warps, most),
        sizes[0] if ld_v or not vectors else sizes[1],
        ld,
        ld_v,
    )


def _leading_dimension(rows: int, lanes: int, itemsize: int) -> int:
    """Return the distance of columns, at least ``rows``, without bank conflicts.

    ``lanes`` neighbours read one column; the next ones of the same access read the next column,
    which must lie in other banks: an odd multiple of ``lanes`` apart.
    """
    if lanes * itemsize >= _BANKS_BYTES:
        return rows
    return rows + (lanes - rows) % (2 * lanes)
