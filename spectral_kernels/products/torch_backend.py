"""Symmetric products in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def gram(A: Tensor) -> Tensor:
    """Return A^T A or A A^T, the smaller, (..., r, r) float64 of A (..., m, n)."""
    X = A.to(torch.float64)
    return X.mT @ X if A.shape[-2] >= A.shape[-1] else X @ X.mT
