"""What every update of leading triplets must hold to, whatever runs it."""

from __future__ import annotations

import numpy as np
import torch

import spectral_kernels as sk
from tests.support import matrices, tolerances

K = 5


def check(A: torch.Tensor, result: sk.SVD, tracker: sk.SpectrumTracker, k: int = K) -> None:
    """Every bound, orthonormality, order, shapes."""
    told = (tracker.bounds, tracker.error_norms, tracker.residuals, tracker.frobenius_norms)
    assert all(x.dtype == torch.float64 for x in told)
    if not bool(A.isfinite().all()):
        assert all(bool(x.isnan().all()) for x in (*result, *told))
        assert (tracker.identities == -1).all()
        return
    m, n = A.shape
    k = min(k, m, n)
    U, S, Vh = (x.double().numpy() for x in result)
    assert (U.shape, S.shape, Vh.shape) == ((m, k), (k,), (k, n))
    eps = torch.finfo(result.S.dtype).eps
    exact = A.double().numpy()
    truth = np.linalg.svd(exact, compute_uv=False)
    slack = tolerances.LAPACK * truth[0]
    # Summed in float64, for the mass of what is not in S is told from it.
    scale = max(np.abs(exact).max(), np.finfo(float).tiny)
    norm = np.linalg.norm(exact / scale) * scale
    assert abs(float(tracker.frobenius_norms) - norm) <= 1e-13 * norm
    error = S - truth[:k]
    assert (np.diff(S) <= 0).all()
    assert (np.abs(error) <= tracker.bounds.numpy() + slack).all()
    assert np.linalg.norm(error) <= float(tracker.error_norms) + slack
    # From below, but for rounding.
    least = tolerances.smallest(result.S.dtype)
    assert (error <= 20 * eps * truth[0] + least).all()
    right = np.linalg.norm(exact @ Vh.T - U * S, axis=0)
    assert (right <= tracker.residuals.numpy() + slack).all()
    left = np.linalg.norm(exact.T @ U - Vh.T * S, axis=0)
    assert (left <= 40 * eps * np.linalg.norm(exact) + min(m, n) * least).all()
    for X in (U.T @ U, Vh @ Vh.T):
        assert np.abs(X - np.eye(k)).max() <= 1e-9 + 8 * eps


def steep(m: int, n: int, power: float, seed: int = 0) -> torch.Tensor:
    sigma = np.arange(1.0, min(m, n) + 1) ** -power
    return torch.from_numpy(matrices.with_spectrum(m, n, sigma, seed)).float()


ITERATIONS = ["one iteration", "two iterations", "three iterations"]
