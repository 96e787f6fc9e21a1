"""Matrices that share their launches, told to kernels without an array of pointers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_kernels.products.triton_backend import alignment
from spectral_kernels.runtime.triton import host


@dataclass(frozen=True)
class Batch:
    """Matrices of one shape and layout: where they are, and their numbers.

    ``first`` (..., m, n) tells base pointer, dtype and strides; ``offsets`` (B,) int64 where each
    begins, in elements from there, multiples of ``align``; ``places`` (B, 2) int64 the index of
    the matrix in its list and of the entry in its batch, which random numbers depend on.
    """

    first: Tensor
    offsets: Tensor
    places: Tensor
    align: int

    @staticmethod
    def of(matrices: list[Tensor], numbers: list[int]) -> Batch:
        """Take in tensors (..., m, n) of one shape, dtype, device and layout, none empty."""
        first = matrices[0]
        size = first.element_size()
        steps = _batch_offsets(first)
        begins = [(A.data_ptr() - first.data_ptr()) // size for A in matrices]
        table = torch.tensor(
            [
                (begin + step, number, entry)
                for begin, number in zip(begins, numbers, strict=True)
                for entry, step in enumerate(steps)
            ]
        )
        table = host.on_device(table, first.device)
        return Batch(
            first, table[:, 0].contiguous(), table[:, 1:].contiguous(), alignment(first, begins)
        )

    def __len__(self) -> int:
        return len(self.offsets)


def _batch_offsets(A: Tensor) -> list[int]:
    offsets = [0]
    for size, stride in zip(A.shape[:-2], A.stride()[:-2], strict=True):
        offsets = [place + i * stride for place in offsets for i in range(size)]
    return offsets
