r"""What approximate singular vectors prove about singular values, without a decomposition.

X (M, r) with M >= r, V (r, r) near orthogonal, W = X V, and s_j = ||w_j|| sorted descending. Let
||V^T V - I||_2 <= f < 1. Call column j leading where s_j > 1e-7 s_1, and let W_L be the leading
columns, W_T the others, tail = ||W_T||_F. With D = diag(s_j) of the leading ones and C their
cosines off the diagonal, W_L^T W_L = D (I + C) D; let ||C||_2 <= c.

1. Relative: D (I + C) D is congruent to I + C, so by Ostrowski's theorem (Horn, Johnson, Matrix
   Analysis, 4.5.9) its i-th eigenvalue is theta_i s_i^2 with 1 - c <= theta_i <= 1 + c:

       s_i sqrt(1 - c) <= sigma_i(W_L) <= s_i sqrt(1 + c).

2. Additive: Z = W_L D^-1 has the polar form Q (I + C)^(1/2), Q with orthonormal columns, and
   W_L - Q D = Q ((I + C)^(1/2) - I) D = Q ((I + C)^(1/2) + I)^-1 C D. The singular values of Q D
   are the s_i, hence (Weyl) with d = ||C D||_F / (1 + sqrt(max(0, 1 - c)))

       |sigma_i(W_L) - s_i| <= d.

   The better one for small columns, whose cosines may be large: they are weighted with s_j.

3. The tail: W W^T = W_L W_L^T + W_T W_T^T, so for the leading i

       sigma_i(W_L) <= sigma_i(W) <= sqrt(sigma_i(W_L)^2 + tail^2),

   and for the others 0 <= sigma_i(W) <= tail (Weyl, since sigma_{l+1} of the l columns W_L is
   zero). Cosines of columns that are rounding alone are never looked at.

4. From W to X: V = P H with P orthogonal and H symmetric with eigenvalues within
   [sqrt(1 - f), sqrt(1 + f)], and sigma_i(X P H) lies within sigma_i(X) times these:

       sigma_i(W) / sqrt(1 + f) <= sigma_i(X) <= sigma_i(W) / sqrt(1 - f).

Together they bound the whole vector of errors, too (Mirsky): with every s_j in its place,

    ||s - sigma(W)||_2 <= ||W_L - Q D||_F + 2 tail <= d + 2 tail.

c and f are the smaller of the Frobenius norm and the largest absolute row sum, both bounds of the
2-norm of a symmetric matrix.

Rounding, with gamma_n = n u / (1 - n u) (Higham 2002, Section 3.1): the computed product of a
matrix Y with depth n is off by gamma_n |Y| |Z| at most, entry by entry. Each cosine is therefore
off by gamma_M, ||C||_F by r gamma_M and ||C D||_F by gamma_M sqrt(r) ||D||_F; F by r gamma_r; and
W differs from X V by gamma_r || |X| |V| ||_F <= gamma_r sqrt(r) ||X||_F (Cauchy-Schwarz, for the
unit columns of V), which comes on top by Weyl. In float32 these are what the bounds cannot fall
below; products are therefore summed in chunks of 32 (gemm.h), so that gamma_n there stands
for 33 + n / 32 operations instead of n. F is measured in float64 for the same reason, and only
when what is known of it (csrc/cpu/tracking/whole) has grown too large:

5. R = I + E + E^2 / 2 with a skew E has R^T R = I + E^4 / 4, so ||F|| becomes
   (1 + f) (1 + ||E||^4 / 4) - 1 at most, plus rounding; V (I - F / 2) has the departure
   -3/4 F^2 + 1/4 F^3 from orthonormal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.runtime.numerics import result_dtype

_LEADING = 1e-7


class Certificate(NamedTuple):
    """The norms s of the columns of W in their order, and what they are worth.

    ``values`` (r,); ``radii`` (r,): the theorem above, the quantity held against the tolerance;
    ``rounding`` (): what float64 arithmetic and the narrowing of the result add to each;
    ``error_norm`` (): the bound of the 2-norm of all errors, rounding included.
    """

    values: Tensor
    radii: Tensor
    rounding: Tensor
    error_norm: Tensor


def certify(gram: Tensor, departure: Tensor, rows: int, dtype: torch.dtype) -> Certificate:
    """Return the norms of the columns of W and bounds of |sigma_i(X) - s_i|.

    Args:
        gram: W^T W (r, r), float64, for X scaled so that no square under- or overflows.
        departure: V^T V - I (r, r), float64.
        rows: M, the length of the columns of W.
        dtype: of the matrix; results are narrowed to ``result_dtype(dtype)``.
    """
    r = gram.shape[-1]
    cosine_rounding = r * _gamma(rows)
    values = gram.diagonal().clamp_min(0.0).sqrt()
    largest = values.max()
    leading = values > _LEADING * largest
    # Division by infinity leaves the columns of the tail out.
    lengths = torch.where(leading, values, float("inf"))
    cosines = gram / lengths / lengths.unsqueeze(-1)
    cosines.fill_diagonal_(0.0)
    c = _norm_bound(cosines) + cosine_rounding
    f = _norm_bound(departure) + r * _gamma(r)
    pull = torch.linalg.matrix_norm(cosines * values) + cosine_rounding * values.norm()
    d = pull / (1.0 + (1.0 - c).clamp_min(0.0).sqrt())
    tail = torch.where(leading, 0.0, values).norm()

    low = torch.maximum(values * (1.0 - c).clamp_min(0.0).sqrt(), values - d)
    high = torch.hypot(torch.minimum(values * (1.0 + c).sqrt(), values + d), tail)
    low = torch.where(leading, low, 0.0) / (1.0 + f).sqrt()
    # f >= 1 proves nothing: the square root is 0 there and the bound infinite.
    high = torch.where(leading, high, tail) / (1.0 - f).clamp_min(0.0).sqrt()
    radii = torch.maximum(values - low, high - values)
    # A zero matrix has zero columns whatever V is, unless V is nothing at all.
    radii = torch.where((largest == 0) & (f < 1), 0.0, radii)

    # ||X||_F <= ||W||_F / sqrt(1 - f); the factor 2 is for f and the division by sqrt(1 - f).
    product = 2.0 * _gamma(r) * r**0.5 * values.norm()
    narrowing = torch.finfo(result_dtype(dtype)).eps * largest
    stretch = 1.0 / (1.0 - f).clamp_min(0.0).sqrt() - 1.0
    total = d + 2.0 * tail
    total = total + (values.norm() + total) * stretch + product + r**0.5 * narrowing
    # As above: a zero matrix has no errors.
    total = torch.where((largest == 0) & (f < 1), 0.0, total)
    return Certificate(values, radii, product + narrowing, total)


def departure_bound(V: Tensor) -> float:
    """Return a bound of ||V^T V - I||_2 for V (r, r) float64; NaN or infinite for what is not."""
    r = V.shape[-1]
    departure = V.mT @ V
    departure.diagonal().sub_(1.0)
    return float(_norm_bound(departure)) + r * _gamma(r)


def _norm_bound(symmetric: Tensor) -> Tensor:
    """Return an upper bound of the 2-norm, ()."""
    rows = symmetric.abs().sum(dim=-1).max()
    return torch.minimum(torch.linalg.matrix_norm(symmetric), rows)


def _gamma(n: int) -> float:
    u = torch.finfo(torch.float64).eps / 2
    return n * u / (1.0 - n * u)
