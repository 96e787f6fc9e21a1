"""The named tuples that the functions return. Fields are arrays of the caller's kind."""

from __future__ import annotations

from typing import NamedTuple

from spectral_kernels.entry.arrays import Array


class SVD(NamedTuple):
    """A = U @ diag(S) @ Vh, the singular values descending.

    ``U`` (..., m, k), ``S`` (..., k), ``Vh`` (..., k, n); k = min(m, n) unless truncated.

    Example:
        >>> found = sk.svd(np.eye(3, 2))
        >>> found.U.shape, found.S.shape, found.Vh.shape
        ((3, 2), (2,), (2, 2))
    """

    U: Array
    S: Array
    Vh: Array


class SpectralSummary(NamedTuple):
    """Everything that a spectrum says about the size and the rank of a matrix.

    ``singular_values`` (..., r), descending; every other field (...), of the same dtype.
    ``effective_rank`` is the entropy of sigma / sum(sigma) in nats, ``effective_rank_exp`` its
    exponential. ``numerical_rank`` is floating, so that a matrix with NaN has a NaN here too.

    Example:
        >>> sk.spectral_summary(torch.ones(5, 4, 3)).effective_rank.shape
        torch.Size([5])
    """

    singular_values: Array
    effective_rank: Array
    effective_rank_exp: Array
    stable_rank: Array
    numerical_rank: Array
    spectral_norm: Array
    nuclear_norm: Array
    frobenius_norm: Array


METRICS = SpectralSummary._fields[1:]
"""The scalars of a matrix, in the order of the columns of every table of summaries."""


class Decomposed(NamedTuple):
    """A = U @ Sigma @ Vh with a dense core: ``U`` (..., m, k), ``Sigma`` (..., k, k), ``Vh``.

    Example:
        >>> factors = sk.Decomposed(np.eye(3, 2), np.diag([2.0, 1.0]), np.eye(2, 4))
        >>> sk.svdvals(factors).round(6)  # of the 3 x 4 product, which is not formed
        array([2., 1.])
    """

    U: Array
    Sigma: Array
    Vh: Array


class Snapshot(NamedTuple):
    """Packed copies of many matrices and what one pass over them tells.

    ``matrices``: contiguous, float64 where the source is, else float32. The other three are 1-D
    float64 tensors with one entry per matrix, in order, batches unrolled: the largest |entry|,
    the Frobenius norm, and 1.0 where every entry is finite, else 0.0.
    """

    matrices: list[Array]
    max_abs: Array
    frobenius_norm: Array
    finite: Array
