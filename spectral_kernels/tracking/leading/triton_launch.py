"""Launchers of the kernels of leading updates."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.rsvd.triton_launch import Batch
from spectral_kernels.runtime.triton import host
from spectral_kernels.tracking.leading import triton_kernels

# Random numbers are the same bits everywhere only where every operation is rounded by itself.
_UNFUSED = {"enable_fp_fusion": False}


def refresh_plan(width: int) -> dict[str, int]:
    """Return the launch parameters of ``refresh``. Not measured."""
    padded = max(16, host.next_power_of_2(width))
    return {"ROWS": 16, "L": padded, "num_warps": 4, "num_stages": 1}


def refresh(V: Tensor, updates: Tensor, kept: int, every: int) -> Tensor:
    """Return V (B, n, width), with random columns from ``kept`` on at every ``every``-th update."""
    out = torch.empty_like(V)
    count, n, width = V.shape
    launch = refresh_plan(width)
    host.launch(
        triton_kernels.refresh,
        count * host.cdiv(n, launch["ROWS"]),
        out,
        v_ptr=V,
        updates_ptr=updates,
        out_ptr=out,
        n=n,
        width=width,
        kept=kept,
        every=every,
        **launch,
        **_UNFUSED,
    )
    return out


def leftover_plan() -> dict[str, int]:
    """Return the launch parameters of ``leftover``. Not measured."""
    return {"BLOCK_M": 64, "BLOCK_N": 64, "DEPTH": 16, "num_warps": 8, "num_stages": 2}


def leftover(batch: Batch, U: Tensor, Bt: Tensor, needed: Tensor, largest: Tensor) -> Tensor:
    """Return ||scale A - U B||_F (B,) float64 where ``needed`` (B,) bool, 0 elsewhere.

    U (B, m, l) and Bt (B, parts, n, l) float32, of which the sum of the parts is B^T.
    """
    m, n = batch.first.shape[-2:]
    stride_am, stride_an = batch.first.stride()[-2:]
    launch = leftover_plan()
    across, down = (
        host.cdiv(n, launch["BLOCK_N"]),
        host.cdiv(m, launch["BLOCK_M"]),
    )
    out = torch.zeros(len(batch), down * across, dtype=torch.float64, device=U.device)
    host.launch(
        triton_kernels.leftover,
        (down, across, len(batch)),
        out,
        a_ptr=batch.first,
        offsets_ptr=batch.offsets,
        u_ptr=U,
        b_ptr=Bt,
        needed_ptr=needed.to(torch.int32),
        largest_ptr=largest,
        out_ptr=out,
        rows=m,
        columns=n,
        width=U.shape[-1],
        parts=Bt.shape[1],
        stride_am=stride_am,
        stride_an=stride_an,
        ALIGN=batch.align,
        **launch,
    )
    return out.sum(1).sqrt()
