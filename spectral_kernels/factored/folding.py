"""Where Sigma goes in a product of U Sigma Vh with p rows: counted, not tried.

It can be applied to the k numbers of each row ("rows"), or be folded into a factor first:
W = U Sigma ("left") or W = Sigma Vh ("right"). In multiplications, for U (m, k) and Vh (k, n):

    y = x (U Sigma Vh)^T    p k (m + n) + k^2 times p, m or n.

With g the gradient of y, capitals for what has m or n columns and one row for each of the k ranks,
small letters for one column for each of the p rows:

    rows    c = U^T g^T    d = Sigma^T c    a = Vh x^T    b = Sigma a
            dU = g^T b^T   dSigma = c a^T   dVh = d x     dx = d^T Vh
    left    W = U Sigma    d = W^T g^T      a = Vh x^T    G = a g
            dU = G^T Sigma^T   dSigma = U^T G^T   dVh = d x   dx = d^T Vh
    right   W = Sigma Vh   c = U^T g^T      b = W x^T     H = c x
            dU = g^T b^T   dSigma = H Vh^T  dVh = Sigma^T H   dx = c^T W

(G^T and H are the gradients of the folded factor.) Where every gradient is needed all three have
p k (2 m + 3 n), with three products of k^2 times p, m or n: with more rows than min(m, n) Sigma
is folded into the smaller side. Where some parts are frozen, other products fall away in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Way = Literal["rows", "left", "right"]

WAYS: tuple[Way, Way, Way] = ("rows", "left", "right")


def forward_way(p: int, m: int, n: int) -> Way:
    """Return the way with the fewest operations: Sigma goes where the fewest numbers are."""
    if p <= m and p <= n:
        return "rows"
    return "left" if m <= n else "right"


def backward_way(p: int, m: int, n: int, width: int, needed: Sequence[bool]) -> Way:
    """Return the way with the fewest operations for the gradients of x, U, Sigma, Vh in ``needed``.

    Args:
        p: rows for each matrix.
        m: rows of U.
        n: columns of Vh.
        width: how many numbers of Sigma a number is multiplied with: k, or 1 for a diagonal.
        needed: a flag for each of x, U, Sigma and Vh.
    """
    if all(needed[:4]):
        return forward_way(p, m, n)
    return min(WAYS, key=lambda way: backward_operations(way, p, m, n, width, needed))


def backward_operations(
    way: Way, p: int, m: int, n: int, width: int, needed: Sequence[bool]
) -> int:
    """Return the multiplications of the backward pass, over k: of the products drawn above."""
    x, U, Sigma, Vh = needed[:4]
    long = n * x + m * U + n * Vh
    if way == "rows":
        long += m * (x or Sigma or Vh) + n * (U or Sigma)
        return p * long + width * p * ((x or Vh) + U + Sigma)
    if way == "left":
        # G takes the place of dU's long product.
        long += m * (x or Vh) + n * (U or Sigma) + m * (Sigma and not U)
        return p * long + width * m * ((x or Vh) + U + Sigma)
    # H takes the place of dVh's.
    long += m * (x or Sigma or Vh) + n * U + n * (Sigma and not Vh)
    return p * long + width * n * ((x or U) + Sigma + Vh)
