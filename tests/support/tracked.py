"""What every update of whole spectra must hold to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import spectral_kernels as sk
from spectral_kernels.runtime.triton import host
from tests.support import tolerances


def check(A: torch.Tensor, result: sk.SVD, tracker: sk.SpectrumTracker) -> None:
    """The theorems, the tolerance of what is not lost, the residual, order and orthonormality."""
    bounds: Any = tracker.bounds
    lost = bool(tracker.lost)
    if not bool(A.isfinite().all()):
        assert all(bool(x.isnan().all()) for x in (*result, bounds, tracker.error_norms))
        assert not lost
        return
    m, n = A.shape
    r = min(m, n)
    dtype = result.S.dtype
    assert bounds.dtype == torch.float64
    assert ([*result.U.shape], [*result.S.shape], [*result.Vh.shape]) == ([m, r], [r], [r, n])
    exact = A.double().numpy()
    truth = np.linalg.svd(exact, compute_uv=False)
    S, radii = result.S.double().numpy(), bounds.numpy()
    assert (np.diff(S) <= 0).all()
    assert (S >= 0).all()
    # NumPy's own error is no fault of the bound.
    slack = tolerances.LAPACK * truth[0]
    assert (np.abs(S - truth) <= radii + slack).all()
    assert np.linalg.norm(S - truth) <= float(tracker.error_norms) + r**0.5 * slack
    if not lost:
        allowed = tracker.tolerance * S[0] + tolerances.tracked_bound(truth[0], dtype)
        assert (radii <= allowed).all()

    U, Vh = result.U.double().numpy(), result.Vh.double().numpy()
    size = 2 * radii.max() + tolerances.vectors(r, dtype) * truth[0]
    assert np.linalg.norm(exact - (U * S) @ Vh) <= r**0.5 * size
    short, long = (Vh @ Vh.T, U.T @ U) if m >= n else (U.T @ U, Vh @ Vh.T)
    drift = tolerances.drift(dtype, interpreted=host.interpreting(), lost=lost)
    assert np.abs(short - np.eye(r)).max() <= drift
    # What a cosine of two long vectors may be hangs on the values: it is what the bound allows.
    assert np.abs(np.diag(long) - 1).max() <= tolerances.unit(dtype)
    assert (np.abs(long - np.eye(r)) * np.minimum(S, S[:, None])).max() <= 1.25 * size
