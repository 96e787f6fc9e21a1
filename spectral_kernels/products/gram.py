"""The Gram matrix of a matrix, accumulated in float64."""

from __future__ import annotations

from torch import Tensor

from spectral_kernels.runtime import dispatch


def gram(A: Tensor) -> Tensor:
    """Return A^T A where m >= n, else A A^T, (..., r, r) float64, r = min(m, n).

    Args:
        A: (..., m, n) of any floating dtype and any strides, unchecked.

    The error is 1e-16 times the depth, relative to the lengths of the two columns, whatever the
    dtype: singular values from it are right to about 1e-8 sigma_1.
    """
    G: Tensor = dispatch.backend("products", A.device.type).gram(A)
    return G
