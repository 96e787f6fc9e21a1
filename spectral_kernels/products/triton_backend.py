"""Launcher of the Gram kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.products import triton_kernels
from spectral_kernels.runtime.triton import host

# Programs that fill an H100 (132 SMs) twice; what a smaller GPU makes of them is a longer queue.
PROGRAMS = 264


def gram(A: Tensor) -> Tensor:
    """Return A^T A or A A^T, the smaller, (..., r, r) float64 of A (..., m, n)."""
    *batch, m, n = A.shape
    X = A if m >= n else A.mT
    depth, side = X.shape[-2:]
    if A.numel() == 0:
        return A.new_zeros((*batch, side, side), dtype=torch.float64)
    flat = X.reshape(-1, depth, side)
    if flat.dtype in (torch.float16, torch.bfloat16):
        # The compiler of Triton 3.6 fails at 16 bits widened to a product of float64.
        flat = flat.float()
    offsets = torch.arange(len(flat), device=A.device) * flat.stride(0)
    G = partial_grams(
        flat, offsets, depth, side, flat.stride(1), flat.stride(2), align=alignment(flat, [])
    )
    return G.sum(1).reshape(*batch, side, side)


def partial_grams(
    x: Tensor,
    offsets: Tensor,
    depth: int,
    side: int,
    stride_k: int,
    stride_i: int,
    *,
    parts: int = 1,
    stride_part: int = 0,
    align: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Return (batch, splits, side, side) float64 whose sum over the splits is X^T X.

    X (depth, side) of each entry of the batch begins ``offsets`` (batch,) int64 elements after
    ``x``, multiples of ``align``, and is the sum of ``parts`` blocks. ``out`` is memory to use.
    """
    count = len(offsets)
    launch = plan(count, depth, side)
    splits = launch.pop("splits")
    if out is None:
        out = torch.empty(count, splits, side, side, dtype=torch.float64, device=x.device)
    host.launch(
        triton_kernels.gram,
        (count * launch["TILES"] ** 2, splits),
        x,
        x_ptr=x,
        offsets_ptr=offsets,
        out_ptr=out,
        depth=depth,
        side=side,
        parts=parts,
        share=share(depth, splits),
        stride_part=stride_part,
        stride_xk=stride_k,
        stride_xi=stride_i,
        ALIGN=align,
        **launch,
    )
    return out


def plan(count: int, depth: int, side: int) -> dict[str, int]:
    """Return the launch parameters, and how many parts the depth is split into.

    Tiles of 64 x 64: twice the flops per byte of 32 x 32, and the sum takes 32 registers of each of
    256 threads. The depth is split where the tiles alone would leave SMs idle, into parts of at
    least 256, so that the sums written stay below the matrix read. Not measured.
    """
    block = max(16, min(64, host.next_power_of_2(side)))
    tiles = host.cdiv(side, block)
    programs = count * tiles * (tiles + 1) // 2
    splits = max(1, min(PROGRAMS // programs, depth // 256, 64))
    # Parts begin at multiples of 32, and none of them is empty.
    splits = host.cdiv(depth, share(depth, splits))
    return {
        "TILES": tiles,
        "BLOCK": block,
        "DEPTH": 16,
        "num_warps": 8 if block == 64 else 4,
        "num_stages": 2,
        "splits": splits,
    }


def share(depth: int, splits: int) -> int:
    """Return how much of ``depth`` each of ``splits`` parts has, in whole steps of 32."""
    return host.cdiv(host.cdiv(depth, splits), 32) * 32


def alignment(first: Tensor, distances: list[int]) -> int:
    """Return a power of two, at most 16, that divides every distance and batch stride of ``first``.

    Loads are as wide as what is known of their addresses allows.
    """
    align = 16
    for distance in (*distances, *(first.stride()[:-2])):
        while distance % align:
            align //= 2
    return align
