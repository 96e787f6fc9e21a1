"""Which Jacobi kernel solves a shape: threads, shared memory, leading dimensions.

Two families, in csrc/cuda. ``jacobi_registers.cu`` has a matrix in the registers of 8, 16 or 32
lanes and takes sides up to 32. ``jacobi_shared.cu`` has a matrix in the shared memory of a block;
what a sweep moves there, 2 n (n - 1) (m + n) elements (short side n, long side m), is what its time
is made of: at 128 bytes a clock 8 clocks for a pair of 64 x 64 in float32, and 2 for its sums.
None of the choices below is measured on a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Largest side of a matrix whose values alone are found in registers: there a warp solves 2 to 4
# matrices, where a block of bidiagonal.cu would leave half of its lanes idle.
VALUES_SIDE = 16

_REGISTERS_SIDE = 32
# 4 warps: a batch of a few hundred matrices still reaches every multiprocessor.
_REGISTERS_THREADS = 128

_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}

# Lanes of a pair, rows that each holds, most threads of a block, as jacobi_shared.cu has them.
# Fewer lanes spend less on sums; rows that no lane holds are read twice.
_SHARED_VARIANTS = ((8, 8, 256), (8, 16, 512), (16, 16, 512), (32, 16, 512))

# Bytes that the banks of shared memory serve at a time.
_BANKS_BYTES = 128


@dataclass(frozen=True)
class Plan:
    """A launch for matrices of one shape.

    ``leading`` are the distances of columns of W and of V in elements, 0 for a V in global memory;
    without entries for the kernels that have no shared memory.
    """

    kernel: str
    threads: int
    matrices_per_block: int
    shared_bytes: int
    leading: tuple[int, ...]


def values_plan(m: int, n: int, dtype: torch.dtype) -> Plan:
    """Return the launch that finds values of (m, n), both within ``VALUES_SIDE``, in ``dtype``."""
    return _registers("svdvals", m, n, dtype)


def vectors_plan(m: int, n: int, dtype: torch.dtype, shared_limit: int) -> Plan | None:
    """Return the launch for the SVD of matrices (m, n) computed in ``dtype``.

    None where one of them does not fit into ``shared_limit`` bytes.
    """
    if max(m, n) <= _REGISTERS_SIDE:
        return _registers("svd", m, n, dtype)
    return _shared(max(m, n), min(m, n), dtype, shared_limit)


def _registers(name: str, m: int, n: int, dtype: torch.dtype) -> Plan:
    side = max(8, 1 << (max(m, n) - 1).bit_length())
    kernel = f"{name}_registers_{_SUFFIXES[dtype]}_{side}"
    return Plan(kernel, _REGISTERS_THREADS, _REGISTERS_THREADS // side, 0, ())


def _shared(rows: int, columns: int, dtype: torch.dtype, shared_limit: int) -> Plan | None:
    lanes, held, most_threads = next(
        (v for v in _SHARED_VARIANTS if v[0] * v[1] >= rows), _SHARED_VARIANTS[-1]
    )
    ld, ld_v = (_leading_dimension(x, lanes, dtype.itemsize) for x in (rows, columns))
    for leading in ((ld, ld_v), (ld, 0)):
        size = (columns * sum(leading) + 3 * columns + 2 * rows) * dtype.itemsize
        if size <= shared_limit:
            # A warp for every 32 // lanes pairs; the kernel's scratch counts on no more.
            warps = -(-((columns + 1) // 2) * lanes // 32)
            kernel = f"svd_shared_{_SUFFIXES[dtype]}_{lanes}x{held}"
            return Plan(kernel, min(32 * warps, most_threads), 1, size, leading)
    return None


def _leading_dimension(rows: int, lanes: int, itemsize: int) -> int:
    """Return a distance of columns, at least ``rows``, without bank conflicts.

    ``lanes`` neighbours read one column; the next ones of the same access read the next column,
    which must lie in other banks: an odd multiple of ``lanes`` apart.
    """
    if lanes * itemsize >= _BANKS_BYTES:
        return rows
    return rows + (lanes - rows) % (2 * lanes)
