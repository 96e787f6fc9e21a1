"""Where tensors lie, and whether others lie in the same memory.

Work on the same memory again and again is prepared once: addresses are handed to kernels, and CUDA
graphs hold them. What was prepared serves other tensors exactly where `Memory.is_of` says so. An
object proves nothing: ``parameter.data = x`` moves one, and an array of another library is a
new tensor each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from spectral_kernels.runtime.numerics import DTYPE_CODES

# (a_ptr, dtype, batch, m, n, stride_b, stride_m, stride_n)
MatrixArgument: TypeAlias = tuple[int, int, int, int, int, int, int, int]


class Layout(NamedTuple):
    """Shape, strides, dtype and device of a tensor, whatever its address."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Place(NamedTuple):
    """The address of a tensor, and its layout."""

    address: int
    layout: Layout


def layout(A: Tensor) -> Layout:
    """Return how ``A`` lies."""
    return Layout(A.shape, A.stride(), A.dtype, A.device)


def place(A: Tensor) -> Place:
    """Return where ``A`` lies; two tensors with one place are read and written as one."""
    return Place(A.data_ptr(), layout(A))


class Memory:
    """The memory of tensors that something was prepared for.

    It keeps them, so that no other tensor can come to their memory meanwhile.

    Args:
        tensors: any, strided, on any devices.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [A.detach() for A in tensors]
        self._places = [place(A) for A in self.tensors]

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` are in the memory of the kept ones, in the same layout."""
        return [place(A) for A in tensors] == self._places

    def is_like(self, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` have the layouts of the kept ones, whatever their addresses."""
        return [layout(A) for A in tensors] == [layout for _, layout in self._places]


def flattened(A: Tensor) -> Tensor:
    """Return ``A`` (..., m, n) as (B, m, n): a view, a copy where batches have no single stride."""
    return A.reshape(-1, *A.shape[-2:])


def is_view(view: Tensor, A: Tensor) -> bool:
    """Whether ``view``, made of ``A`` without an offset, reads its memory and is no copy."""
    return view.data_ptr() == A.data_ptr()


def matrix_argument(A: Tensor) -> tuple[MatrixArgument, Tensor]:
    """Return the eight integers by which compiled kernels find ``A`` (..., m, n), and its owner.

    The second is a tensor that must outlive the call: ``A``, or its copy, see `flattened`.
    """
    code = DTYPE_CODES[A.dtype]
    if A.dim() == 2:
        m, n = A.shape
        stride_m, stride_n = A.stride()
        return (A.data_ptr(), code, 1, m, n, 0, stride_m, stride_n), A
    A = A.flatten(0, -3)
    return (A.data_ptr(), code, *A.shape, *A.stride()), A


def addresses(block: Tensor, lengths: Sequence[int]) -> list[int]:
    """Return where parts of these lengths begin that lie in a block, one after the other."""
    ends = itertools.accumulate(lengths, initial=0)
    return [block.data_ptr() + end * block.element_size() for end in ends][:-1]
