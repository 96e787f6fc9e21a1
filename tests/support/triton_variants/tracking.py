"""Variants of the tracker's kernels, at the launch parameters of their steps."""

from __future__ import annotations

from typing import Any

from spectral_kernels.tracking.whole import (
    triton_certificate_kernels,
    triton_completion_kernels,
    triton_output_kernels,
    triton_product_kernels,
    triton_settling_kernels,
    triton_tangent_kernels,
    triton_verdict_kernels,
)
from spectral_kernels.tracking.whole.triton_launches import (
    PASS,
    PRODUCT,
    STRETCH,
    STRIPES,
    TILE,
    WHOLE,
)
from tests.support.triton_variants import Variant

_TYPES = {"asked_ptr": "*i32", "turns_ptr": "*i32", "incomplete_ptr": "*i32", "turned_ptr": "*i32",
          "doubtful_ptr": "*i32", "doubt_ptr": "*i32",
          "fresh_ptr": "*i32", "order_ptr": "*i64", "slots_ptr": "*i64", "names_ptr": "*i64",
          "identities_ptr": "*i64", "codes_ptr": "*i64", "lost_ptr": "*u8"}  # fmt: skip


def _variant(kernel: Any, plan: dict[str, Any], name: str = "", **types: str) -> Variant:
    """Pointers are float64 and sizes 32-bit integers, unless told otherwise."""
    signature = {
        argument: types.get(
            argument, _TYPES.get(argument, "*fp64" if argument.endswith("_ptr") else "i32")
        )
        for argument in kernel.arg_names
        if argument not in plan
    }
    return Variant.of_plan(name or kernel.__name__, kernel, signature, plan)


_FIRST = {"FIRST": True}
_LATER = {"FIRST": False}

VARIANTS = [
    _variant(triton_certificate_kernels.lengths, {**WHOLE, **_FIRST}),
    _variant(triton_certificate_kernels.row_sums, {**STRIPES, **_LATER}),
    _variant(triton_verdict_kernels.verdict, {**WHOLE, **_LATER, "LARGEST_ROW": 0.6}),
    _variant(triton_tangent_kernels.rotation, {**TILE, "SKIP": True}),
    _variant(triton_tangent_kernels.orthonormalizer, {**STRIPES, "SKIP": True}),
    _variant(
        triton_output_kernels.outcome, dict(WHOLE), "outcome, float32", long_ptr="*fp32",
        out_s_ptr="*fp32",
    ),
    _variant(triton_output_kernels.outcome, dict(WHOLE), "outcome, float64"),
    _variant(triton_output_kernels.vectors, dict(TILE), out_ptr="*fp32"),
    _variant(triton_output_kernels.keep, dict(STRETCH)),
    _variant(triton_completion_kernels.coefficients, dict(TILE)),
    _variant(triton_completion_kernels.write_back, dict(STRETCH), out_ptr="*fp32"),
    _variant(triton_settling_kernels.first_doubt, dict(STRIPES)),
    _variant(triton_settling_kernels.settle, dict(PASS), "settle, float32", q_ptr="*fp32"),
    _variant(triton_settling_kernels.settle, dict(PASS), "settle, float64"),
    _variant(triton_product_kernels.asked_products, {**PRODUCT, "ALPHA": 1.0, "ADD": False}),
    _variant(
        triton_product_kernels.asked_products, {**PRODUCT, "ALPHA": 0.5, "ADD": True},
        "asked_products, added",
    ),
    _variant(
        triton_product_kernels.asked_products, {**PRODUCT, "ALPHA": 1.0, "ADD": False},
        "asked_products of float32", a_ptr="*fp32", b_ptr="*fp32",
    ),
]  # fmt: skip
