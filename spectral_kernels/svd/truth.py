"""What is right: NumPy float64 with LAPACK's gesdd."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_kernels.entry.results import SVD

Float64 = np.ndarray[Any, np.dtype[np.float64]]


def svd(A: np.ndarray[Any, Any]) -> SVD:
    """Return the thin SVD in float64; the largest entry of each u is positive.

    A matrix with NaN or Inf inside gives NaN; the others of the batch are untouched.
    """
    A = np.asarray(A, dtype=np.float64)
    bad = ~np.isfinite(A).all(axis=(-2, -1))
    U, S, Vh = np.linalg.svd(np.where(bad[..., None, None], 0.0, A), full_matrices=False)
    if U.size:
        pivot = np.take_along_axis(U, np.abs(U).argmax(axis=-2)[..., None, :], axis=-2)
        sign = np.where(pivot < 0, -1.0, 1.0)
        U, Vh = U * sign, Vh * np.swapaxes(sign, -2, -1)
    U[bad], S[bad], Vh[bad] = np.nan, np.nan, np.nan
    return SVD(U, S, Vh)


def svdvals(A: np.ndarray[Any, Any]) -> Float64:
    """Return the singular values in float64, descending."""
    values: Float64 = svd(A).S
    return values


def svdvals_gradient(A: np.ndarray[Any, Any], grad: np.ndarray[Any, Any]) -> Float64:
    """Return U diag(grad) V^T, the gradient of sum(grad * sigma) where the sigmas are simple."""
    U, _, Vh = svd(A)
    gradient: Float64 = (U * grad[..., None, :]) @ Vh
    return gradient
