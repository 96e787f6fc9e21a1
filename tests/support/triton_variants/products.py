"""Variants of the Gram kernel: the types of its input, both orientations, narrow and wide."""

from __future__ import annotations

from spectral_kernels.products import triton_kernels
from spectral_kernels.products.triton_backend import plan
from tests.support.triton_variants import Variant


def _variant(name: str, dtype: str, side: int, contiguous: str, parts: int = 1) -> Variant:
    launch = plan(1, 4096, side)
    launch.pop("splits")
    sizes = dict.fromkeys(("depth", "side", "parts", "share"), "i32")
    strides = dict.fromkeys({"stride_part", "stride_xk", "stride_xi"} - {contiguous}, "i32")
    variant = Variant.of_plan(
        f"gram {name}",
        triton_kernels.gram,
        {"x_ptr": f"*{dtype}", "offsets_ptr": "*i64", "out_ptr": "*fp64", **sizes, **strides},
        {**launch, "ALIGN": 16},
        ("x_ptr", "offsets_ptr", "out_ptr", *strides),
    )
    # Triton makes constants of sizes and strides that are one.
    variant.constants[contiguous] = 1
    if parts == 1:
        del variant.signature["parts"]
        variant.constants["parts"] = 1
    return variant


VARIANTS = [
    _variant("fp32 rows", "fp32", 1024, "stride_xi"),
    _variant("fp32 columns", "fp32", 1024, "stride_xk"),
    _variant("fp64 rows", "fp64", 1024, "stride_xi"),
    _variant("fp32 narrow", "fp32", 16, "stride_xi"),
    _variant("fp32 of parts", "fp32", 40, "stride_xi", parts=4),
]
