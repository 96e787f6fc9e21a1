r"""What chance alone would give: alignment, agreement and overlap of random directions.

Let u be uniform on the unit sphere of R^d, u = g / ||g|| with g standard normal. By symmetry u . v
has the law of u_1 for every unit v, and u_1^2 is Beta(1/2, (d - 1) / 2), so

    c(d) = E |u . v| = Gamma(d / 2) / (sqrt(pi) Gamma((d + 1) / 2)),      about sqrt(2 / (pi d)).

Of a part of a vector: if u is uniform on the sphere of R^M and u_P are d of its entries, then
||u_P||^2 is Beta(d / 2, (M - d) / 2), independent of the direction of u_P, which is uniform; so

    E ||u_P|| = Gamma((d + 1) / 2) Gamma(M / 2) / (Gamma(d / 2) Gamma((M + 1) / 2)).

Of two disjoint parts of the same vector, as queries and keys of a fused weight are: u = g / ||g||
with ||g|| independent of u, so E |<u_P, u_Q>| = E |<g_P, g_Q>| / M, and given g_P the product is
normal with the standard deviation ||g_P||:

    E |<u_P, u_Q>| = 2 Gamma((d + 1) / 2) / (sqrt(pi) Gamma(d / 2) M).

Of subspaces: if the k columns of Q are orthonormal and those of Q' a uniform frame of k' in R^d,
each squared cosine is 1 / d in the mean, so E ||Q^T Q'||_F^2 = k k' / d.

Random matrices with Gaussian entries have such singular vectors (Haar measure); so an alignment
near these values says nothing.
"""

from __future__ import annotations

import math

from spectral_kernels.entry import checks


def chance_alignment(
    d: int, whole: int | None = None, next_whole: int | None = None, *, same_vector: bool = False
) -> float:
    """Return the mean of |<u, v'>| for random unit vectors that meet in d entries.

    Args:
        d: the number of entries in which the two meet.
        whole: length of the unit vector that the entries of u are taken from, such as the rows of
            all heads; d by default.
        next_whole: the same for v'.
        same_vector: u and v' are two disjoint parts of one vector of ``whole`` entries.

    Returns:
        Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)), times the mean lengths of the two parts.

    Raises:
        ValueError: d < 1, or a whole that is shorter than its parts.

    Example:
        >>> round(sk.chance_alignment(128), 4)
        0.0707
        >>> round(sk.chance_alignment(32, 128, 128), 4)  # one head of four, of both
        0.0351
    """
    checks.check_count(d, "d", 1)
    if same_vector:
        both = 2 * d if whole is None else whole
        checks.check_count(both, "whole", 2 * d)
        growth = math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
        return 2 * growth / (math.sqrt(math.pi) * both)
    cosine = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
    for name, length in (("whole", whole), ("next_whole", next_whole)):
        if length is not None:
            checks.check_count(length, name, d)
            cosine *= _mean_length(d, length)
    return cosine


def chance_agreement(m: int, n: int) -> float:
    """Return the mean of |u . u'| |v . v'| for random vectors of an m x n matrix.

    For a cluster of c random vectors ``subspace_agreement`` has a mean of at most c / sqrt(m n)
    (Jensen), more than this: compare it with that where clusters are large.

    Raises:
        ValueError: m < 1 or n < 1.

    Example:
        >>> round(sk.chance_agreement(128, 128), 4)
        0.005
    """
    return chance_alignment(m) * chance_alignment(n)


def chance_overlap(d: int, k: int, next_k: int | None = None) -> float:
    """Return the mean of ``subspace_overlap`` of random subspaces of R^d, max(k, k') / d.

    Args:
        d: the dimension of the space.
        k: the dimension of one subspace.
        next_k: of the other; k by default.

    Raises:
        ValueError: a dimension below 1, or a subspace larger than the space.

    Example:
        >>> sk.chance_overlap(100, 10)
        0.1
    """
    other = k if next_k is None else next_k
    checks.check_count(d, "d", 1)
    for name, value in (("k", k), ("next_k", other)):
        checks.check_count(value, name, 1)
        if value > d:
            raise ValueError(f"{name} is {value}; expected at most d = {d}")
    return max(k, other) / d


def _mean_length(d: int, whole: int) -> float:
    """Return E ||u_P|| for d entries of a random unit vector of ``whole`` entries."""
    return math.exp(
        math.lgamma((d + 1) / 2) - math.lgamma(d / 2)
        + math.lgamma(whole / 2) - math.lgamma((whole + 1) / 2)
    )  # fmt: skip
