"""How far from the truth results may be: one number for each quantity, and where it comes from.

A tolerance that belongs to one case alone stands in its test, with what was measured there.
Comparisons that are exact stay exact.
"""

from __future__ import annotations

from typing import Any

import torch

from spectral_kernels.runtime import numerics

# Of a tracker, relative to the largest singular value: what users get who ask for nothing.
TRACKER = 1e-3
# A tracker's bounds have rounding on top of its tolerance, at most a hundredth of it.
TRACKER_AND_ROUNDING = 1.01e-3

# LAPACK's float64 singular values are the truth of most tests and off by some eps of the largest
# themselves, which is no fault of a bound: along trajectories, at cores of hard factors (40 eps at
# most), and at the zoo of tests/support/matrices.
LAPACK = 4 * 2.0**-52
LAPACK_OF_CORES = 40 * 2.0**-52
LAPACK_OF_THE_ZOO = 64 * 2.0**-52

# Two ways to one float64 number, forward or backward, that differ in the order of their sums.
# Measured over Transformers and transforms: at most 0.002 of it.
REORDERED = {"rtol": 1e-11, "atol": 1e-12}


def smallest(dtype: torch.dtype) -> float:
    """The unit of rounding below the normal range: a value there is a multiple of it."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def value(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, largest: float) -> float:
    """Of singular values computed from scratch: what `numerics.value_rounding` states.

    8 eps of the largest where results are float32, (8 + max(m, n)) eps in float64.
    """
    result = numerics.result_dtype(dtype)
    return max(numerics.value_rounding(*shape[-2:], result) * largest, smallest(result))


def vectors(rank: int, dtype: torch.dtype) -> float:
    """Of residuals relative to the largest value, and of orthonormality, entry by entry.

    LAPACK's own are of this order: a modest multiple of sqrt(r) eps.
    """
    return 12 * torch.finfo(dtype).eps * max(rank, 4) ** 0.5


def tracked_bound(largest: Any, dtype: torch.dtype) -> Any:
    """What a tracker's bound may have on top of its tolerance, by rounding: 8 eps and 1e-10."""
    return (8 * torch.finfo(dtype).eps + 1e-10) * largest + smallest(dtype)


def unit(dtype: torch.dtype) -> float:
    """Of the lengths of vectors that a tracker turned."""
    return 1e-6 if dtype == torch.float64 else 1e-5


def drift(dtype: torch.dtype, *, interpreted: bool, lost: bool) -> float:
    """Of the orthonormality of vectors that a tracker turned, on the side that it keeps.

    2e-3 is what a Newton-Schulz step leaves after the largest rotation, which only a matrix that is
    lost has seen. In float32 the CPU leaves more than 1e-5 of graded matrices, Triton does not.
    """
    if lost:
        return 2e-3
    return unit(dtype) if interpreted or dtype == torch.float64 else 2e-4
