"""The CUDA backend of the SVD: vectors by Jacobi, values by whatever suits the size."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.svd import cuda_values, cuda_vectors
from spectral_kernels.svd.jacobi_plan import VALUES_SIDE, vectors_plan


def svdvals(matrices: list[Tensor]) -> list[Tensor]:
    """Return the singular values (..., r) of each matrix (..., m, n)."""
    small = [max(A.shape[-2:]) <= VALUES_SIDE for A in matrices]
    solvers = {True: cuda_vectors.svdvals, False: cuda_values.svdvals}
    solved = {
        which: iter(solve([A for A, x in zip(matrices, small, strict=True) if x == which]))
        for which, solve in solvers.items()
    }
    return [next(solved[x]) for x in small]


def svdvals_with_tables(matrices: list[Tensor], rtol: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return the singular values (..., r) and the table of ranks and norms (..., 7) of each."""
    return cuda_values.svdvals_with_tables(matrices, rtol)


def svd(matrices: list[Tensor]) -> list[SVD]:
    """Return the thin SVD of each matrix (..., m, n)."""
    return cuda_vectors.svd(matrices)


def svd_waits(m: int, n: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ``svd`` of (m, n) matrices makes the host wait for the device.

    Torch's own solvers do, which take what does not fit the shared memory of a block.
    """
    side, limit = min(m, n), launcher.limits(device).shared_bytes
    return side > 0 and vectors_plan(side, side, result_dtype(dtype), limit) is None
