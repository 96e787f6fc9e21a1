"""What every SVD must hold to, whatever computes it: the numerics contract."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import torch

import spectral_kernels as sk
from spectral_kernels.runtime import numerics
from spectral_kernels.svd import truth
from tests.support import matrices, tolerances

ALL = {**matrices.ZOO, **matrices.SCALED}


def true_values(A: torch.Tensor) -> Any:
    """Return the singular values to the last bit of float64 where that is affordable.

    LAPACK in float64 is off by 16 eps sigma_1 on Wilkinson's matrix, more than is allowed here.
    """
    if A.dtype == torch.float64 and 0 < max(A.shape) <= 21:
        return exact_values(A.numpy())
    return truth.svdvals(A.double().numpy())


def exact_values(A: Any) -> Any:
    with mpmath.workdps(60):
        M = mpmath.matrix(A.tolist())
        gram = M.T * M if A.shape[0] >= A.shape[1] else M * M.T
        squares = mpmath.eigsy(gram, eigvals_only=True)
        return np.sort([float(mpmath.sqrt(max(x, 0))) for x in squares])[::-1]


def check_values(S: torch.Tensor, A: torch.Tensor) -> None:
    true = true_values(A)
    assert S.dtype == numerics.result_dtype(A.dtype)
    assert S.shape == true.shape
    got = S.double().numpy()
    allowed = tolerances.value(A.shape, A.dtype, true[0])
    assert np.abs(got - true).max(initial=0.0) <= allowed
    assert (np.diff(got) <= 0).all()
    assert (got >= 0).all()


def check_vectors(result: sk.SVD, A: torch.Tensor) -> None:
    """Residuals, orthonormality, order and signs; never entry by entry."""
    U, S, Vh = (x.double() for x in result)
    m, n = A.shape
    r = min(m, n)
    assert (U.shape, S.shape, Vh.shape) == ((m, r), (r,), (r, n))
    eps = torch.finfo(result.S.dtype).eps
    smallest = tolerances.smallest(result.S.dtype)
    allowed = tolerances.vectors(r, result.S.dtype)
    size = float(S[0]) + smallest / eps
    D = A.double() / size
    assert (D @ Vh.mT - U * (S / size)).abs().max() <= allowed
    assert (D.mT @ U - Vh.mT * (S / size)).abs().max() <= allowed
    eye = torch.eye(r, dtype=torch.float64)
    assert (U.mT @ U - eye).abs().max() <= allowed
    assert (Vh @ Vh.mT - eye).abs().max() <= allowed
    # Symmetric matrices have vectors with two entries of the largest magnitude, up to rounding.
    assert (U.amax(dim=0) >= (1 - 4 * eps) * U.abs().amax(dim=0)).all()
    assert result.U.mT.is_contiguous()
