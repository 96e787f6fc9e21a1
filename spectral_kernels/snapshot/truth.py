"""What is right: the statistics of a snapshot, NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np


def statistics(A: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return max|a|, the Frobenius norm and 1.0 if all entries are finite: (..., 3).

    The first two are NaN for a matrix with NaN or Inf.
    """
    A = np.asarray(A, dtype=np.float64)
    finite = np.isfinite(A).all(axis=(-2, -1))
    safe = np.where(finite[..., None, None], A, np.nan)
    largest = np.abs(safe).max(axis=(-2, -1), initial=0.0)
    scale = np.where(largest > 0, largest, 1.0)
    norm = scale * np.sqrt(((safe / scale[..., None, None]) ** 2).sum(axis=(-2, -1)))
    return np.stack((largest, norm, finite.astype(np.float64)), axis=-1)
