"""Variants of the passes of leading updates: k = 100."""

from __future__ import annotations

from spectral_kernels.tracking.leading import triton_kernels
from spectral_kernels.tracking.leading.triton_launch import _UNFUSED, leftover_plan, refresh_plan
from tests.support.triton_variants import Variant


def _leftover(contiguous: str) -> Variant:
    pointers = {"a_ptr": "*fp32", "offsets_ptr": "*i64", "u_ptr": "*fp32", "b_ptr": "*fp32"}
    results = {"needed_ptr": "*i32", "largest_ptr": "*i32", "out_ptr": "*fp64"}
    names = {"rows", "columns", "width", "parts", "stride_am", "stride_an"} - {contiguous}
    variant = Variant.of_plan(
        f"leftover, {contiguous} one",
        triton_kernels.leftover,
        {**pointers, **results, **dict.fromkeys(names, "i32")},
        {**leftover_plan(), "ALIGN": 16},
        (*pointers, *results),
    )
    variant.constants[contiguous] = 1
    return variant


def _refresh(width: int) -> Variant:
    pointers = {"v_ptr": "*fp32", "updates_ptr": "*i64", "out_ptr": "*fp32"}
    return Variant.of_plan(
        f"refresh {width}",
        triton_kernels.refresh,
        {**pointers, **dict.fromkeys(("n", "width", "kept", "every"), "i32")},
        {**refresh_plan(width), **_UNFUSED},
        tuple(pointers),
    )


VARIANTS = [_leftover("stride_an"), _leftover("stride_am"), _refresh(112), _refresh(16)]
