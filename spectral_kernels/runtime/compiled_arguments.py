"""How tensors are told to the compiled kernels: addresses, sizes and strides."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from spectral_kernels.runtime.numerics import DTYPE_CODES

# (a_ptr, dtype, batch, m, n, stride_b, stride_m, stride_n)
MatrixArgument: TypeAlias = tuple[int, int, int, int, int, int, int, int]


def matrix_argument(A: Tensor) -> tuple[MatrixArgument, Tensor]:
    """Return the eight integers of ``A`` (..., m, n) and the tensor that owns the memory.

    The second must outlive the call: batches that do not collapse into one stride are copied.
    """
    code = DTYPE_CODES[A.dtype]
    if A.dim() == 2:
        m, n = A.shape
        stride_m, stride_n = A.stride()
        return (A.data_ptr(), code, 1, m, n, 0, stride_m, stride_n), A
    A = A.flatten(0, -3)
    return (A.data_ptr(), code, *A.shape, *A.stride()), A
