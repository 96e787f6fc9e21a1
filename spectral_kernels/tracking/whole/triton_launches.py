"""Launch parameters of the tracker's kernels, and products with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from spectral_kernels.runtime.triton import host
from spectral_kernels.tracking.whole import triton_product_kernels

# Launch parameters, not measured. Tiles of 32 x 32 float64 are 8 numbers a thread; a product's
# 64 x 64 accumulator takes 32 of a thread's 255 registers, and four warps would spill.
TILE = {"SIDE": 32, "num_warps": 4, "num_stages": 1}
STRIPES = {"ROWS": 32, "COLUMNS": 32, "num_warps": 8, "num_stages": 1}
WHOLE = {"BLOCK": 512, "num_warps": 4, "num_stages": 1}
STRETCH = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}
# Rows of Q as they lie in memory, a kilobyte of each at a time.
PASS = {"ROWS": 16, "COLUMNS": 128, "num_warps": 8, "num_stages": 1}
PRODUCT = {"SIDE": 64, "DEPTH": 32, "num_warps": 8, "num_stages": 2}

Product = Callable[[Tensor, Tensor, Tensor, float, bool], None]
"""out = alpha a b of (a, b, out, alpha, add), and out added where the last argument says so."""


def launch(kernel: Any, grid: int, plan: dict[str, int], **arguments: Any) -> None:
    """Run a kernel on so many programs."""
    kernel[(grid,)](**arguments, **plan, **host.OPTIONS)


def multiply(a: Tensor, b: Tensor, out: Tensor, alpha: float, add: bool) -> None:
    """Take the product of every matrix of a batch, by torch."""
    out.baddbmm_(a, b, beta=float(add), alpha=alpha)


def multiply_where(
    asked: Tensor, a: Tensor, b: Tensor, out: Tensor, alpha: float = 1.0, add: bool = False
) -> None:
    """Take it of the matrices that ask: asked (B,) int32, see ``triton_product_kernels``."""
    count, rows, depth = a.shape
    cols = b.shape[-1]
    side = PRODUCT["SIDE"]
    tiles = host.cdiv(rows, side) * host.cdiv(cols, side)
    triton_product_kernels.asked_products[(count * tiles,)](
        asked_ptr=asked, a_ptr=a, b_ptr=b, out_ptr=out, rows=rows, cols=cols, depth=depth,
        stride_ab=a.stride(0), stride_ai=a.stride(1), stride_ak=a.stride(2),
        stride_bb=b.stride(0), stride_bk=b.stride(1), stride_bj=b.stride(2),
        ALPHA=alpha, ADD=add, **PRODUCT, **host.OPTIONS,
    )  # fmt: skip
