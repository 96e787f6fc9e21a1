"""Variants of the alignments and of the clusters."""

from __future__ import annotations

from spectral_kernels.alignment import triton_cluster_kernels, triton_kernels
from spectral_kernels.alignment.triton_backend import cluster_plan, plan
from tests.support.triton_variants import Variant

_ALIGNMENTS = {
    "base_ptr": "*u8",
    "jobs_ptr": "*i64",
    "tiles_ptr": "*i64",
    "sums_ptr": "*fp64",
    "arrived_ptr": "*i32",
}


def _clusters(dtype: str) -> dict[str, str]:
    return {
        "values_ptr": f"*{dtype}",
        "bounds_ptr": "*fp64",
        "jobs_ptr": "*i64",
        "other_ptr": "*fp64",
        "errors_ptr": "*fp64",
        "first_ptr": "*i64",
        "alone_ptr": "*u8",
    }


VARIANTS = [
    *(
        Variant.of_plan(name, triton_kernels.alignments, _ALIGNMENTS, plan(clusters))
        for name, clusters in (("diagonals", False), ("diagonals and clusters", True))
    ),
    *(
        Variant.of_plan(
            f"clusters {dtype}", triton_cluster_kernels.clusters, _clusters(dtype), cluster_plan()
        )
        for dtype in ("fp32", "fp64")
    ),
]
