"""What every update of whole spectra must hold to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import spectral_kernels as sk


def check(A: torch.Tensor, result: sk.SVD, tracker: sk.SpectrumTracker) -> None:
    """The theorems, the tolerance, the residual, order and orthonormality."""
    bounds: Any = tracker.bounds
    tolerance = tracker.tolerance
    if not bool(A.isfinite().all()):
        assert all(bool(x.isnan().all()) for x in (*result, bounds))
        return
    m, n = A.shape
    r = min(m, n)
    eps = torch.finfo(result.S.dtype).eps
    assert bounds.dtype == torch.float64
    assert ([*result.U.shape], [*result.S.shape], [*result.Vh.shape]) == ([m, r], [r], [r, n])
    exact = A.double().numpy()
    truth = np.linalg.svd(exact, compute_uv=False)
    S, radii = result.S.double().numpy(), bounds.numpy()
    assert (np.diff(S) <= 0).all()
    assert (S >= 0).all()
    # NumPy's own error is no fault of the bound.
    slack = 4 * np.finfo(float).eps * truth[0]
    assert (np.abs(S - truth) <= radii + slack).all()
    assert np.linalg.norm(S - truth) <= float(tracker.error_norms) + r**0.5 * slack
    noise = (8 * eps + 1e-10) * truth[0] + torch.finfo(result.S.dtype).smallest_normal * eps
    assert (radii <= tolerance * S[0] + noise).all()

    U, Vh = result.U.double().numpy(), result.Vh.double().numpy()
    size = 2 * radii.max() + 12 * max(r, 4) ** 0.5 * eps * truth[0]
    assert np.linalg.norm(exact - (U * S) @ Vh) <= r**0.5 * size
    short, long = (Vh @ Vh.T, U.T @ U) if m >= n else (U.T @ U, Vh @ Vh.T)
    assert np.abs(short - np.eye(r)).max() <= (1e-6 if result.S.dtype == torch.float64 else 2e-4)
    # What a cosine of two long vectors may be hangs on the values: it is what the bound allows.
    assert np.abs(np.diag(long) - 1).max() <= (1e-6 if result.S.dtype == torch.float64 else 1e-5)
    assert (np.abs(long - np.eye(r)) * np.minimum(S, S[:, None])).max() <= 1.25 * size
