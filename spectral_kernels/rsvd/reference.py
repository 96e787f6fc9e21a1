"""What is right: randomized subspace iteration in NumPy float64.

Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011): Algorithm 4.4
for the range, Algorithm 5.1 for the decomposition.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_kernels.results import SVD
from spectral_kernels.svd.reference import svd


def rsvd(A: np.ndarray[Any, Any], start: np.ndarray[Any, Any], k: int, power_iters: int = 2) -> SVD:
    """Return k leading triplets of ``A`` (..., m, n) from the start block (..., n, l), l >= k."""
    A = np.asarray(A, dtype=np.float64)
    A_transposed = np.swapaxes(A, -2, -1)
    Q = np.linalg.qr(A @ np.asarray(start, dtype=np.float64)).Q
    for _ in range(power_iters):
        Q = np.linalg.qr(A_transposed @ Q).Q
        Q = np.linalg.qr(A @ Q).Q
    U, S, Vh = np.linalg.svd(np.swapaxes(Q, -2, -1) @ A, full_matrices=False)
    U = Q @ U[..., :k]
    signs = svd_signs(U)
    return SVD(U * signs[..., None, :], S[..., :k], Vh[..., :k, :] * signs[..., :, None])


def svd_signs(U: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the signs that make the largest entry of each column of ``U`` positive."""
    pivot = np.take_along_axis(U, np.abs(U).argmax(axis=-2)[..., None, :], axis=-2)[..., 0, :]
    return np.where(pivot < 0, -1.0, 1.0)


def best_error(A: np.ndarray[Any, Any], k: int) -> float:
    """Return the Frobenius error of the best approximation of rank k (Eckart, Young 1936)."""
    return float(np.linalg.norm(svd(A).S[..., k:]))
