"""Variants of the rank epilogue."""

from __future__ import annotations

from spectral_kernels.rank import triton_kernels
from spectral_kernels.rank.triton_backend import plan
from tests.support.triton_variants import Variant

_SIGNATURE = {"base_ptr": "*u8", "jobs_ptr": "*i64"}

VARIANTS = [
    Variant.of_plan(
        f"summaries {told}{' and bounds' if bounds else ''}",
        triton_kernels.summaries,
        _SIGNATURE,
        plan(longest, bounds),
    )
    for told, longest in (("short", 64), ("long", 768))
    for bounds in (False, True)
]
