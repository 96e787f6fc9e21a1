"""Variants of subspace iteration: k = 32 of 4096 x 4096 and of a narrow matrix, k = 100."""

from __future__ import annotations

from spectral_kernels.rsvd import triton_factor_kernels, triton_kernels
from spectral_kernels.rsvd.triton_launch import _UNFUSED, apply_plan, factor_plan, product_plan
from tests.support.triton_variants import Variant

_FIRST, _AGAIN = triton_kernels.FIRST.value, triton_kernels.AGAIN.value
_LATER = triton_kernels.LATER.value


def _product(
    name: str, dtype: str, number: int, width: int, contiguous: str, *, squares: bool = False
) -> Variant:
    launch = product_plan(1, 4096, 4096, width)
    launch.pop("splits")
    pointers = {"a_ptr": f"*{dtype}", "offsets_ptr": "*i64", "x_ptr": "*fp32"}
    results = {"places_ptr": "*i64", "out_ptr": "*fp32", "largest_ptr": "*i32"}
    names = ("rows", "depth", "width", "given", "share", "stride_am", "stride_ak")
    sizes = dict.fromkeys(set(names) - {contiguous}, "i32")
    if squares:
        results["squares_ptr"] = "*fp64"
    random = number != _LATER and not squares
    variant = Variant.of_plan(
        f"product {name}",
        triton_kernels.product,
        {**pointers, **results, **sizes, "seed": "i64"},
        {**launch, "PASS": number, "RANDOM": random, "ALIGN": 16, **_UNFUSED},
        (*pointers, *results, "rows", "depth", *({"stride_am", "stride_ak"} - {contiguous})),
    )
    # Triton makes constants of what is one or None.
    variant.constants[contiguous] = 1
    if not squares:
        variant.constants["squares_ptr"] = None
    return variant


def _factor(width: int) -> Variant:
    pointers = dict.fromkeys(("gram_ptr", "r_ptr", "inverse_ptr"), "*fp64")
    return Variant.of_plan(
        f"factor {width}",
        triton_factor_kernels.factor,
        {**pointers, "width": "i32"},
        factor_plan(width),
        tuple(pointers),
    )


def _apply(name: str, fill: bool, columns: int, parts: int) -> Variant:
    pointers = {"y_ptr": "*fp32", "t_ptr": "*fp64", "out_ptr": "*fp32"}
    names = ("parts", "rows", "width", "columns", "stride_tb", "stride_tk", "stride_om")
    variant = Variant.of_plan(
        f"apply {name}",
        triton_factor_kernels.apply,
        {**pointers, **dict.fromkeys(names, "i32"), "seed": "i64", "fill_scale": "fp32"},
        {**apply_plan(4096, columns), "FILL": fill, **_UNFUSED},
        tuple(pointers),
    )
    variant.constants.update(stride_tc=1, stride_oc=1)
    if parts == 1:
        del variant.signature["parts"]
        variant.constants["parts"] = 1
    return variant


VARIANTS = [
    _product("first fp32", "fp32", _FIRST, 40, "stride_ak"),
    _product("first bf16", "bf16", _FIRST, 40, "stride_ak"),
    _product("first fp32 of columns", "fp32", _FIRST, 40, "stride_am"),
    _product("again fp32", "fp32", _AGAIN, 40, "stride_ak"),
    _product("first fp32 of a tracker", "fp32", _FIRST, 112, "stride_ak", squares=True),
    _product("fp32", "fp32", _LATER, 40, "stride_ak"),
    _product("fp32 transposed", "fp32", _LATER, 40, "stride_am"),
    _product("bf16 transposed", "bf16", _LATER, 40, "stride_am"),
    _product("fp32 wide", "fp32", _LATER, 112, "stride_ak"),
    _product("fp32 narrow", "fp32", _LATER, 16, "stride_ak"),
    _factor(16),
    _factor(40),
    _factor(112),
    _apply("of parts and fill", True, 40, 4),
    _apply("and fill", True, 40, 1),
    _apply("for vectors", False, 32, 1),
]
