"""What is right: products with decomposed matrices, NumPy float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Float64 = np.ndarray[Any, np.dtype[np.float64]]


def recompose(
    U: np.ndarray[Any, Any], Sigma: np.ndarray[Any, Any], Vh: np.ndarray[Any, Any]
) -> Float64:
    """Return U Sigma Vh; ``Sigma`` is (..., k), its diagonal, or (..., k, k)."""
    U, Sigma, Vh = (np.asarray(x, dtype=np.float64) for x in (U, Sigma, Vh))
    if Sigma.ndim < U.ndim:
        Sigma = Sigma[..., :, None] * np.eye(Sigma.shape[-1])
    matrix: Float64 = U @ Sigma @ Vh
    return matrix


def usv_matmul(
    x: np.ndarray[Any, Any],
    U: np.ndarray[Any, Any],
    Sigma: np.ndarray[Any, Any],
    Vh: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any] | None = None,
) -> Float64:
    """Return x (U Sigma Vh)^T + bias."""
    y: Float64 = np.asarray(x, np.float64) @ np.swapaxes(recompose(U, Sigma, Vh), -2, -1)
    return y if bias is None else y + np.asarray(bias, np.float64)[..., None, :]


def break_even_rank(m: int, n: int) -> int:
    """Return the largest k with k^2 + (m + n) k <= m n, by search."""
    return max(k for k in range(math.isqrt(m * n) + 1) if k * k + (m + n) * k <= m * n)
