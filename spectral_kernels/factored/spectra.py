"""Singular values and vectors of U Sigma Vh from its factors, without the m x n matrix."""

from __future__ import annotations

from collections.abc import Sequence

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, Leave, enter_together
from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.svd.op import svd, svdvals


def usv_svd(
    U: Array | Sequence[Array],
    Sigma: Array | Sequence[Array],
    Vh: Array | Sequence[Array],
    *,
    check_finite: bool = False,
) -> SVD | list[SVD]:
    """Return the k leading triplets of U Sigma Vh, which are all that it has.

    QR of the thin factors and an SVD of a k x k core: some 2 (m + n) k^2 operations in place of
    the m n k of the product and the SVD of that. See ``decomposed/core/op.py``.

    Args:
        U: (..., m, k); lists or tuples of factors give a list. Nothing need be orthogonal.
        Sigma: (..., k, k), or (..., k) for a diagonal.
        Vh: (..., k, n).
        check_finite: raise on NaN or Inf instead of returning NaN for the matrix that has it.

    Returns:
        ``SVD(U (..., m, r), S (..., r), Vh (..., r, n))``, r = min(k, m, n), otherwise as of
        ``svd``: orthonormal vectors even where the factors are dependent. Declared
        non-differentiable: ``usv_svdvals`` has a gradient.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: shapes that do not chain, mixed devices or kinds, or NaN/Inf with
            ``check_finite``.
    """
    factors, leave = _enter(U, Sigma, Vh)
    result: SVD | list[SVD] = leave(svd(factors, check_finite=check_finite))
    return result


def usv_svdvals(
    U: Array | Sequence[Array],
    Sigma: Array | Sequence[Array],
    Vh: Array | Sequence[Array],
    *,
    check_finite: bool = False,
) -> Array | list[Array]:
    """Return the k singular values of U Sigma Vh that are not zero, descending.

    Args:
        U, Sigma, Vh, check_finite: as for ``usv_svd``.

    Returns:
        S (..., min(k, m, n)), within 8 eps sigma_1 in float32, (8 + max(m, n)) eps sigma_1 in
        float64. Differentiable in the factors: with a_i = U^T u_i and b_i = Vh v_i, d sigma_i =
        u_i^T dU Sigma b_i + a_i^T dSigma b_i + a_i^T Sigma dVh v_i, finite for repeated values.

    Raises:
        TypeError, ValueError: as for ``usv_svd``.
    """
    factors, leave = _enter(U, Sigma, Vh)
    return leave(svdvals(factors, check_finite=check_finite))


def _enter(
    U: Array | Sequence[Array], Sigma: Array | Sequence[Array], Vh: Array | Sequence[Array]
) -> tuple[list[Decomposed], Leave]:
    entered, leave = enter_together(U=U, Sigma=Sigma, Vh=Vh)
    factors = [Decomposed(*parts) for parts in zip(*entered, strict=True)]
    for x in factors:
        checks.check_factors(x.U, x.Sigma, x.Vh)
    return factors, leave
