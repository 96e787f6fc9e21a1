"""Variants of the snapshot."""

from __future__ import annotations

from spectral_kernels.snapshot import triton_kernels
from spectral_kernels.snapshot.triton_backend import plan
from tests.support.triton_variants import Variant

_SIGNATURE = {
    "base_ptr": "*u8",
    "jobs_ptr": "*i64",
    "chunks_ptr": "*i64",
    "parts_ptr": "*fp64",
    "arrived_ptr": "*i32",
    "statistics_ptr": "*fp64",
}

VARIANTS = [
    Variant.of_plan("snapshot", triton_kernels.snapshot, _SIGNATURE, plan(), tuple(_SIGNATURE))
]
