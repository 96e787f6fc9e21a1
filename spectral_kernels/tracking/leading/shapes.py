"""Results of leading updates in the shapes of the tensors they are of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.tracking.leading.state import WORK, LeadingResult


def nothing(A: Tensor, k: int) -> LeadingResult:
    """Return the result of a batch without entries, by the shape it has."""
    *batch, m, n = A.shape
    dtype = result_dtype(A.dtype)
    svd = SVD(
        A.new_zeros((*batch, k, m), dtype=dtype).mT,
        A.new_zeros((*batch, k), dtype=dtype),
        A.new_zeros((*batch, k, n), dtype=dtype),
    )
    bounds = A.new_zeros((*batch, k), dtype=torch.float64)
    identities = torch.zeros((*batch, k), dtype=torch.int64)
    norms = A.new_zeros(tuple(batch), dtype=torch.float64)
    work = [WORK[1]] * math.prod(batch)
    residuals, sizes = bounds.clone(), norms.clone()
    return LeadingResult(svd, bounds, norms, residuals, sizes, identities, work)


def unflatten(result: LeadingResult, A: Tensor) -> LeadingResult:
    """Return ``result`` with the batch dimensions of ``A``."""
    *batch, m, n = A.shape
    (U, S, Vh), bounds, norms, residuals, sizes, identities, work = result
    k = S.shape[-1]
    return LeadingResult(
        SVD(U.mT.reshape(*batch, k, m).mT, S.reshape(*batch, k), Vh.reshape(*batch, k, n)),
        bounds.reshape(*batch, k),
        norms.reshape(tuple(batch)),
        residuals.reshape(*batch, k),
        sizes.reshape(tuple(batch)),
        identities.reshape(*batch, k),
        work,
    )
