"""Which kernel finds the singular values of matrices of one shape, and what its blocks need.

A model of counts (bytes, instructions, registers as nvcc tells them), not measured on a device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from spectral_kernels.runtime.numerics import result_dtype

# Most rows -> kernel and the threads that its registers allow.
_BIDIAGONAL = {
    torch.float32: (
        (32, "bidiagonal_float_1", 512),
        (64, "bidiagonal_float_2", 512),
        (128, "bidiagonal_float_4", 512),
        (256, "bidiagonal_float_8", 512),
    ),
    torch.float64: (
        (32, "bidiagonal_double_1", 512),
        (64, "bidiagonal_double_2", 512),
        (128, "bidiagonal_double_4", 512),
        (256, "bidiagonal_double_8", 256),
        (512, "bidiagonal_double_16", 256),
    ),
}
_GRAM = (
    (32, "gram_values_1", 64),
    (64, "gram_values_2", 128),
    (128, "gram_values_4", 256),
    (192, "gram_values_6", 512),
)

# Warps that a multiprocessor should have between all of its blocks. Not measured; a count of what
# nvcc makes of 64 x 64 in float32: four columns are 155 instructions and some 350 cycles, so four
# warps keep each of four schedulers busy. More are no gain, because 350 instructions of a step are
# done by every warp alike: 64 steps come to 134,000 for a matrix with two warps and 190,000 with
# four. At one instruction a cycle a thousand matrices on 132 multiprocessors are 0.15 ms.
_WARPS_PER_MULTIPROCESSOR = 16
# Between these a warp has no more lanes than values to find later, and enough columns for its part.
_MOST_COLUMNS, _LEAST_COLUMNS = 32, 16


@dataclass(frozen=True)
class Plan:
    """A launch for matrices of one shape: which kernel, threads and shared memory of a block.

    ``given`` is what the kernel works on: the matrix, its Gram matrix, or R of its QR.
    """

    kernel: str
    threads: int
    shared_bytes: int
    given: Literal["matrix", "gram", "triangle"] = "matrix"


def plan(dtype: torch.dtype, m: int, n: int, shared_limit: int) -> Plan | None:
    """Return the launch for (m, n) matrices of ``dtype``, None where no kernel can.

    Args:
        dtype: any that ``svdvals`` takes.
        m: rows, at least one.
        n: columns, at least one.
        shared_limit: bytes of shared memory that a block may have.
    """
    rows, short = max(m, n), min(m, n)
    result = result_dtype(dtype)
    kernel = _bidiagonal(rows, short, result, shared_limit)
    if kernel is None and result == torch.float32:
        kernel = _gram(short, shared_limit)
    elif kernel is None:
        kernel = _bidiagonal(short, short, result, shared_limit)
        kernel = kernel and replace(kernel, given="triangle")
    return kernel


def _bidiagonal(rows: int, short: int, dtype: torch.dtype, shared_limit: int) -> Plan | None:
    for most_rows, kernel, most_threads in _BIDIAGONAL[dtype]:
        if rows <= most_rows:
            matrix = dtype.itemsize * rows * short
            for threads in _threads(short, matrix, shared_limit, most_threads):
                size = _bidiagonal_bytes(rows, short, threads, dtype)
                if size <= shared_limit:
                    return Plan(kernel, threads, size)
            return None
    return None


def _gram(short: int, shared_limit: int) -> Plan | None:
    for most_rows, kernel, most_threads in _GRAM:
        if short <= most_rows:
            threads = _threads(short, 8 * short * short, shared_limit, most_threads)[0]
            size = _gram_bytes(short, threads)
            return Plan(kernel, threads, size, "gram") if size <= shared_limit else None
    return None


def _threads(columns: int, matrix_bytes: int, shared_limit: int, most: int) -> list[int]:
    """Return numbers of threads, the best first; fewer need less shared memory.

    They depend on nothing but the shape: with the number of warps the rounding of sums changes, and
    a matrix shall have the same values alone and in a batch.
    """
    blocks = max(1, shared_limit // (matrix_bytes + 1024))
    warps = -(-_WARPS_PER_MULTIPROCESSOR // blocks)
    least = -(-columns // _MOST_COLUMNS)
    warps = min(max(warps, least), -(-columns // _LEAST_COLUMNS), most // 32)
    return [32 * w for w in range(warps, least - 1, -1)]


def _bidiagonal_bytes(rows: int, n: int, threads: int, dtype: torch.dtype) -> int:
    """Return the shared memory that the head of csrc/cuda/bidiagonal.cu tells."""
    warps, itemsize = threads // 32, dtype.itemsize
    order = n if dtype == torch.float32 else 2 * n
    reduction = itemsize * (n * (rows | 1) + 2 * n + 2 * warps * (rows + 2))
    return 144 + 16 * n + max(reduction, 16 * order + 16 * threads + 8 * n)


def _gram_bytes(n: int, threads: int) -> int:
    """Return the shared memory that the head of csrc/cuda/gram_values.cu tells."""
    return 16 * n + max(8 * (n * (n | 1) + 4 * n), 16 * n + 16 * threads + 8 * n)
