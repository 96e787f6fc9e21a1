"""Launcher of the Triton kernel: all copies and statistics in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_kernels.runtime.numerics import DTYPE_CODES, result_dtype
from spectral_kernels.runtime.triton.host import (
    batch_offsets,
    cdiv,
    launch,
    on_device,
    unrolled,
)
from spectral_kernels.snapshot import triton_kernels

# Copies begin at multiples of this many bytes, so that rows of tiles are written in whole lines.
_ALIGNMENT = 128
_ALIKE, _TRANSPOSED, _STRIDED = 0, 1, 2


def plan() -> dict[str, int]:
    """Return the launch parameters.

    16,384 entries a program: 5,200 programs for a model of 85 million entries, 40 for each of 132
    multiprocessors, so that the last ones to run cost little, and 64 KB of float32 to read for
    each addition to a counter. Eight entries a thread at a time. Not measured.
    """
    return {"SIDE": 32, "TILES": 16, "BLOCK": 128, "num_warps": 4, "num_stages": 1}


class Copies:
    """Fills the copies of matrices, and ``statistics``, as the compiled ones do."""

    def __init__(self, matrices: list[Tensor], copies: list[Tensor]) -> None:
        device = matrices[0].device
        count = sum(A.shape[:-2].numel() for A in matrices)
        self.statistics = torch.empty(count, 3, dtype=torch.float64, device=device)
        self._owners = (matrices, copies)
        jobs, chunks = _tables(matrices, copies, self.statistics.data_ptr())
        self._arguments = {
            "base_ptr": self.statistics.view(torch.uint8),
            "jobs_ptr": on_device(jobs, device),
            "chunks_ptr": on_device(chunks, device),
            "parts_ptr": torch.empty(len(chunks), 3, dtype=torch.float64, device=device),
            "arrived_ptr": torch.zeros(count, dtype=torch.int32, device=device),
            "statistics_ptr": self.statistics,
        }
        self._programs = len(chunks)

    def run(self) -> None:
        """Copy the matrices as they are now: one launch, nothing is allocated."""
        launch(
            triton_kernels.snapshot, self._programs, self.statistics, **self._arguments, **plan()
        )


def packed(matrices: list[Tensor]) -> list[Tensor]:
    """Return memory for copies, views of one block: those of one shape and type one after the
    other, at equal distances."""
    groups: dict[Any, list[int]] = {}
    for index, A in enumerate(matrices):
        groups.setdefault((result_dtype(A.dtype), A.shape), []).append(index)
    places, end = {}, 0
    for (dtype, shape), members in groups.items():
        size = shape.numel() * dtype.itemsize
        for index in members:
            places[index] = slice(end, end + size)
            end += cdiv(size, _ALIGNMENT) * _ALIGNMENT
    block = torch.empty(end, dtype=torch.uint8, device=matrices[0].device)
    return [
        block[places[index]].view(result_dtype(A.dtype)).view(A.shape)
        for index, A in enumerate(matrices)
    ]


def _tables(matrices: list[Tensor], copies: list[Tensor], base: int) -> tuple[Tensor, Tensor]:
    """Return the kernel's jobs, one a matrix with batches unrolled, and chunks, one a program."""
    rows, steps = [], []
    for A, copy in zip(matrices, copies, strict=True):
        m, n = A.shape[-2:]
        layout = _layout(A)
        row = [A.data_ptr() - base, DTYPE_CODES[A.dtype], n, m * n, A.stride(-2), A.stride(-1)]
        rows.append([*row, layout, copy.data_ptr() - base, 0, _chunks(m, n, layout)])
        steps.append([0] * 7 + [m * n * copy.element_size(), 0, 0])
    offsets = [batch_offsets(A) for A in matrices]
    jobs = unrolled(rows, [len(x) for x in offsets], steps)
    jobs[:, 0] += torch.cat(offsets)
    uneven = (jobs[:, 0] % 16 + jobs[:, 7] % 16) > 0
    jobs[:, 6] = jobs[:, 6].masked_fill(uneven & (jobs[:, 6] == _ALIKE), _STRIDED)
    ends = jobs[:, 9].cumsum(0)
    jobs[:, 8] = ends - jobs[:, 9]
    owner = torch.repeat_interleave(torch.arange(len(jobs)), jobs[:, 9])
    return jobs, torch.stack((owner, torch.arange(len(owner)) - jobs[owner, 8]), dim=1)


def _layout(A: Tensor) -> int:
    m, n = A.shape[-2:]
    stride_m, stride_n = A.stride()[-2:]
    if (stride_n == 1 or n == 1) and (stride_m == n or m == 1):
        return _ALIKE
    transposed = stride_m == 1 and A.dtype != torch.float64 and min(m, n) > 1
    return _TRANSPOSED if transposed else _STRIDED


def _chunks(m: int, n: int, layout: int) -> int:
    """Return how many programs work on one matrix; one where there is nothing to copy."""
    side, tiles = plan()["SIDE"], plan()["TILES"]
    if layout == _TRANSPOSED:
        return max(1, cdiv(cdiv(m, side) * cdiv(n, side), tiles))
    return max(1, cdiv(m * n, side * side * tiles))
