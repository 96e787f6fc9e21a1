"""Launcher of the Triton kernel: all copies and statistics in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_kernels.numerics import DTYPE_CODES, result_dtype
from spectral_kernels.snapshot import triton_kernels
from spectral_kernels.triton_runtime import OPTIONS, batch_offsets, cdiv, on_device, unrolled

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


def snapshot(matrices: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return packed copies of the matrices and the float64 statistics (count, 3)."""
    prepared = Copies(matrices)
    prepared.run()
    return prepared.copies, prepared.statistics


class Copies:
    """Copies of matrices that stay where they are; copies and statistics stay as well.

    Copies of matrices of one shape and type lie one after the other, at equal distances.
    """

    def __init__(self, matrices: list[Tensor]) -> None:
        device = matrices[0].device
        places, size = _packed(matrices)
        block = torch.empty(size, dtype=torch.uint8, device=device)
        self.copies = [_view(block, place, A) for place, A in zip(places, matrices, strict=True)]
        counts = [A.shape[:-2].numel() for A in matrices]
        self.statistics = torch.empty(sum(counts), 3, dtype=torch.float64, device=device)
        self._block = block
        jobs, chunks = _tables(matrices, places, block)
        self._arguments = {
            "base_ptr": block,
            "jobs_ptr": on_device(jobs, device),
            "chunks_ptr": on_device(chunks, device),
            "parts_ptr": torch.empty(len(chunks), 3, dtype=torch.float64, device=device),
            "arrived_ptr": torch.zeros(sum(counts), dtype=torch.int32, device=device),
            "statistics_ptr": self.statistics,
        }
        self._grid = (len(chunks),)

    def run(self) -> None:
        """Copy the matrices as they are now: one launch, nothing is allocated."""
        if self._grid[0]:
            triton_kernels.snapshot[self._grid](**self._arguments, **plan(), **OPTIONS)


def _packed(matrices: list[Tensor]) -> tuple[list[int], int]:
    """Return where each copy begins, in bytes, and the size of all: equal shapes side by side."""
    groups: dict[Any, list[int]] = {}
    for index, A in enumerate(matrices):
        groups.setdefault((result_dtype(A.dtype), A.shape), []).append(index)
    places, end = [0] * len(matrices), 0
    for (dtype, shape), members in groups.items():
        for index in members:
            places[index] = end
            end += cdiv(shape.numel() * dtype.itemsize, _ALIGNMENT) * _ALIGNMENT
    return places, end


def _view(block: Tensor, place: int, A: Tensor) -> Tensor:
    dtype = result_dtype(A.dtype)
    return block[place : place + A.numel() * dtype.itemsize].view(dtype).view(A.shape)


def _tables(matrices: list[Tensor], places: list[int], block: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel's jobs, one a matrix with batches unrolled, and chunks, one a program."""
    base = block.data_ptr()
    rows, steps = [], []
    for A, place in zip(matrices, places, strict=True):
        m, n = A.shape[-2:]
        layout = _layout(A)
        row = [A.data_ptr() - base, DTYPE_CODES[A.dtype], n, m * n, A.stride(-2), A.stride(-1)]
        rows.append([*row, layout, place, 0, _chunks(m, n, layout)])
        steps.append([0] * 7 + [m * n * result_dtype(A.dtype).itemsize, 0, 0])
    offsets = [batch_offsets(A) for A in matrices]
    jobs = unrolled(rows, [len(x) for x in offsets], steps)
    jobs[:, 0] += torch.cat(offsets)
    uneven = ((jobs[:, 0] + base) % 16 + (jobs[:, 7] + base) % 16) > 0
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
