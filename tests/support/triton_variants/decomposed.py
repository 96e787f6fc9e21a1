"""Variants of usv_matmul and its gradient, as planned for 8192 rows of 4096 x 4096."""

from __future__ import annotations

from dataclasses import replace

from spectral_kernels.factored import tiling, triton_backward_kernels, triton_kernels
from tests.support.triton_variants import Variant

_TYPES = {"bf16": ("*bf16", 2), "fp16": ("*fp16", 2), "fp32": ("*fp32", 4)}
_STRIDES = ("xb", "xp", "ub", "um", "vb", "vk")


def _problem(dtype: str, k: int, architecture: int, p: int = 8192) -> tiling.Problem:
    return tiling.Problem(
        batch=1, p=p, m=4096, n=4096, k=k, entry_bytes=_TYPES[dtype][1],
        split=dtype == "bf16", hopper=architecture == 90,
    )  # fmt: skip


def _variant(
    name: str, kernel: object, tiles: tiling.Tiles, dtype: str, signature: dict[str, str],
    units: tuple[str, ...], dense: bool, architecture: int,
) -> Variant:  # fmt: skip
    fixed = {"DENSE": dense, "BIAS": True, "SPLIT": dtype == "bf16", **dict.fromkeys(units, 1)}
    aligned = tuple(argument for argument in signature if argument != "chunks")
    planned = Variant.of_plan(name, kernel, signature, tiles, aligned)
    # A stride of 1 is a constant to Triton, as in every launch with contiguous rows.
    constants = {**planned.constants, **fixed}
    return replace(planned, constants=constants, architectures=(architecture,))


def forward(dtype: str, k: int, architecture: int, *, p: int = 8192, dense: bool = True) -> Variant:
    pointer = _TYPES[dtype][0]
    names = ("x", "u", "sigma", "v", "bias", "y")
    signature = {f"{name}_ptr": pointer for name in names}
    signature |= dict.fromkeys("PMNK", "i32")
    signature |= {f"stride_{s}": "i32" for s in (*_STRIDES, "yb", "yp")}
    units = ("stride_xn", "stride_uk", "stride_vn", "stride_ym")
    name = f"forward {dtype} {k}{' dense' if dense else ''}, {p} rows, sm_{architecture}"
    tiles = tiling.forward_tiles(_problem(dtype, k, architecture, p))
    kernel = triton_kernels.usv_forward
    return _variant(name, kernel, tiles, dtype, signature, units, dense, architecture)


def backward(dtype: str, k: int, architecture: int, *, dense: bool = True) -> Variant:
    pointer = _TYPES[dtype][0]
    names = ("g", "x", "u", "sigma", "v", "dx", "du", "dv", "dbias")
    signature = {f"{name}_ptr": pointer for name in names}
    signature |= {f"{name}_ptr": "*fp32" for name in ("dsigma", "parts", "sums")}
    signature |= {"counters_ptr": "*i32", "planes_ptr": pointer if dtype == "bf16" else "*fp32"}
    signature |= dict.fromkeys((*"PMNK", "chunks"), "i32")
    signature |= {f"stride_{s}": "i32" for s in (*_STRIDES, "gb", "gp")}
    units = ("stride_xn", "stride_uk", "stride_vn", "stride_gm")
    name = f"backward {dtype} {k}{' dense' if dense else ''}, sm_{architecture}"
    tiles = tiling.backward_tiles(_problem(dtype, k, architecture))
    kernel = triton_backward_kernels.usv_backward
    return _variant(name, kernel, tiles, dtype, signature, units, dense, architecture)


VARIANTS = [
    *(forward("bf16", k, 90) for k in (64, 128)),
    forward("bf16", 64, 90, p=256),
    *(forward(dtype, 64, 90) for dtype in ("fp16", "fp32")),
    *(forward(dtype, 64, 80) for dtype in ("bf16", "fp32")),
    backward("bf16", 64, 90, dense=False),
    *(backward("bf16", k, 90) for k in (16, 64, 128)),
    *(backward(dtype, 64, 90) for dtype in ("fp16", "fp32")),
    *(backward(dtype, 64, 80) for dtype in ("bf16", "fp16", "fp32")),
]
