"""What is right: ranks and norms from singular values, NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_kernels.entry.results import SpectralSummary

Float64 = np.ndarray[Any, np.dtype[np.float64]]


def effective_rank(S: np.ndarray[Any, Any]) -> Float64:
    """Return -sum p ln p with p = sigma / sum sigma: Eq. 1 of Yunis et al.; 0 where S is 0."""
    S = np.asarray(S, dtype=np.float64)
    total = S.sum(axis=-1, keepdims=True)
    p = S / np.where(total > 0, total, 1.0)
    logarithm = np.log(np.where(p > 0, p, 1.0))
    entropy: Float64 = 0.0 - (p * logarithm).sum(axis=-1)
    return entropy


def summarize(S: np.ndarray[Any, Any], m: int, n: int, rtol: float) -> SpectralSummary:
    """Return all ranks and norms of (m, n) matrices with singular values ``S`` (..., r)."""
    S = np.asarray(S, dtype=np.float64)
    spectral = S.max(axis=-1, initial=0.0)
    scale = np.where(spectral > 0, spectral, 1.0)
    x = S / scale[..., None]
    frobenius = scale * np.sqrt((x**2).sum(axis=-1))
    entropy = effective_rank(x)
    some = spectral > 0
    return SpectralSummary(
        singular_values=S,
        effective_rank=entropy,
        effective_rank_exp=np.where(some, np.exp(entropy), 0.0),
        stable_rank=(x**2).sum(axis=-1),
        numerical_rank=(x > rtol).sum(axis=-1).astype(np.float64),
        spectral_norm=spectral,
        nuclear_norm=scale * x.sum(axis=-1),
        frobenius_norm=np.where(some, frobenius, 0.0),
    )
