"""Spearman's rank correlation."""

from __future__ import annotations

import numpy as np
from spectral_monitor.step.frame import Array


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's rank correlation of two samples (n,); equal values share their mean rank.

    NaN below three points, and where one sample is constant.
    """
    if len(a) < 3 or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return float("nan")
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(sample: Array) -> Array:
    _, place, count = np.unique(sample, return_inverse=True, return_counts=True)
    mean = np.cumsum(count) - (count - 1) / 2
    ranks: Array = mean[place]
    return ranks
