"""How the singular vectors of two matrices line up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_kernels.alignment.prepared import align
from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, Leave, enter, enter_together
from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import dispatch, schemas
from spectral_kernels.runtime.limits import SCORE_ENTRIES
from spectral_kernels.runtime.numerics import result_dtype

_diagonals = schemas.operator("alignment_diagonals")


def alignment_matrix(
    U: Array | Sequence[Array], Vh_next: Array | Sequence[Array]
) -> Array | list[Array]:
    """Return |U^T V'|, the alignment of two consecutive layers.

    Yunis et al., "Approaching Deep Learning through the Spectral Dynamics of Weights", Eq. 3:
    entry (j, k) is |<u_j, v'_k>| of left vectors of one layer and right vectors of the next.

    Args:
        U: (..., m, r) left singular vectors as columns; a list or tuple gives a list.
        Vh_next: (..., r', m) right singular vectors of the next layer as rows.

    Returns:
        (..., r, r') in [0, 1].

    Raises:
        TypeError: integer or complex dtype.
        ValueError: the sides m differ, fewer than two dimensions, mixed devices or kinds.

    Example:
        >>> U = sk.svd(np.random.default_rng(0).standard_normal((6, 4))).U
        >>> np.allclose(sk.alignment_matrix(U, U.T), np.eye(4))
        True
    """
    pairs, leave = _enter_pairs(U=U, Vh_next=Vh_next)
    return leave([(u.mT @ v.mT).abs() for u, v in pairs])


def alignment_diagonal(
    U: Array | Sequence[Array], Vh_next: Array | Sequence[Array], k: int = 100
) -> Array | list[Array]:
    """Return the first k diagonal entries of ``alignment_matrix`` without forming it.

    Args:
        U: (..., m, r) left singular vectors as columns; a list or tuple gives a list.
        Vh_next: (..., r', m) right singular vectors of the next layer as rows.
        k: how many; capped at min(r, r').

    Returns:
        (..., min(k, r, r')), accumulated in float64. Declared non-differentiable.

    Raises:
        TypeError, ValueError: as for ``alignment_matrix``; k < 1.

    Example:
        >>> first, second = np.random.default_rng(0).standard_normal((2, 8, 8))
        >>> sk.alignment_diagonal(sk.svd(first).U, sk.svd(second).Vh, k=5).shape
        (5,)
    """
    checks.check_count(k, "k", 1)
    pairs, leave = _enter_pairs(U=U, Vh_next=Vh_next)
    return leave(_operator(pairs, k))


def alignment_score(
    diagonal: Array | Sequence[Array], top: int = SCORE_ENTRIES
) -> Array | list[Array]:
    """Return the mean of the first ``top`` diagonal entries: Eq. 4 of Yunis et al.

    Args:
        diagonal: (..., k); a list or tuple gives a list.
        top: how many entries to average; all where there are fewer.

    Returns:
        (...); NaN where k is 0, since the mean of nothing is no number.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: top < 1, or a diagonal without dimension.

    Example:
        >>> float(sk.alignment_score(np.array([1.0, 0.5, 0.0]), top=2))
        0.75
    """
    checks.check_count(top, "top", 1)
    tensors, leave = enter(diagonal, "diagonal")
    for tensor in tensors:
        checks.check_dtype(tensor, "diagonal")
        if tensor.dim() < 1:
            raise ValueError("diagonal has shape (); expected at least one dimension (..., k)")
    return leave([x.to(result_dtype(x.dtype))[..., :top].mean(dim=-1) for x in tensors])


def singular_vector_agreement(
    svd_a: SVD | Sequence[SVD], svd_b: SVD | Sequence[SVD], k: int = 100
) -> Array | list[Array]:
    """Return |u_i . u'_i| |v_i . v'_i|, i < k: the diagonal of Eq. 5 of Yunis et al.

    One where the i-th pair of vectors is the same up to sign. Means little inside a cluster of
    equal singular values, where single vectors are arbitrary: see ``subspace_overlap``.

    Args:
        svd_a: the SVD of an (..., m, n) matrix; a list of SVDs gives a list.
        svd_b: the SVD of a matrix of the same shape, such as the same weight at another step.
        k: how many; capped at the number of triplets that both have.

    Returns:
        (..., k) in [0, 1]. Declared non-differentiable.

    Raises:
        TypeError: integer or complex dtype, or an argument without U and Vh.
        ValueError: m or n differ, k < 1, mixed devices or kinds.

    Example:
        >>> A = np.random.default_rng(0).standard_normal((6, 4))
        >>> sk.singular_vector_agreement(sk.svd(A), sk.svd(-2 * A), k=3).round(6)
        array([1., 1., 1.])
    """
    checks.check_count(k, "k", 1)
    left, right, leave = agreement_pairs(svd_a, svd_b)
    return leave(of_both_sides(_operator([*left, *right], k)))


def agreement_pairs(
    svd_a: SVD | Sequence[SVD], svd_b: SVD | Sequence[SVD]
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]], Leave]:
    """Return the checked pairs (U, U'^T) and (V, V'^T) of two SVDs or two lists of them."""
    a, b = _split(svd_a, "svd_a"), _split(svd_b, "svd_b")
    named = {"svd_a.U": a[0], "svd_a.Vh": a[1], "svd_b.U": b[0], "svd_b.Vh": b[1]}
    entered, leave = enter_together(**named)
    U_a, Vh_a, U_b, Vh_b = (_matrices(x, n) for x, n in zip(entered, named, strict=True))
    for u, vh in zip([*U_a, *U_b], [*Vh_a, *Vh_b], strict=True):
        checks.check_equal("numbers of triplets", ("U's k", u.shape[-1]), ("Vh's k", vh.shape[-2]))
    left = _pairs(U_a, [u.mT for u in U_b], ("svd_a.U", "svd_b.U^T"))
    right = _pairs([v.mT for v in Vh_a], Vh_b, ("svd_a.Vh^T", "svd_b.Vh"))
    return left, right, leave


def subspace_overlap(
    Q_a: Array | Sequence[Array], Q_b: Array | Sequence[Array]
) -> Array | list[Array]:
    """Return ||Q_a^T Q_b||_F^2 / k: the mean squared cosine of the principal angles.

    Safe in clusters, where single vectors are not: it does not depend on the choice of basis.

    Args:
        Q_a: (..., m, k) orthonormal columns; a list or tuple gives a list.
        Q_b: (..., m, k') orthonormal columns.

    Returns:
        (...) in [0, 1], divided by min(k, k'): 1 where one subspace contains the other, about
        max(k, k') / m for random ones. 0 where there are no columns.

    Raises:
        TypeError, ValueError: as for ``alignment_matrix``.

    Example:
        >>> Q = np.eye(4)
        >>> float(sk.subspace_overlap(Q[:, :2], Q[:, 1:3]))
        0.5
    """
    (A, B), leave = enter_together(Q_a=Q_a, Q_b=Q_b)
    transposed = [x.mT for x in _matrices(B, "Q_b")]
    overlaps = []
    for a, bt in _pairs(_matrices(A, "Q_a"), transposed, ("Q_a", "Q_b^T")):
        k = min(a.shape[-1], bt.shape[-2])
        overlaps.append((bt @ a).square().sum(dim=(-2, -1)) / max(k, 1))
    return leave(overlaps)


def of_both_sides(values: list[Tensor]) -> list[Tensor]:
    """Return the products of numbers of left vectors, the first half, with those of right ones."""
    half = len(values) // 2
    return [u * v for u, v in zip(values[:half], values[half:], strict=True)]


def _split(x: SVD | Sequence[SVD], name: str) -> tuple[Array, Array]:
    """Return (U, Vh) of one SVD, or the two lists of many."""
    if hasattr(x, "Vh") and hasattr(x, "U"):
        return x.U, x.Vh
    if isinstance(x, (list, tuple)) and all(hasattr(i, "Vh") and hasattr(i, "U") for i in x):
        return [i.U for i in x], [i.Vh for i in x]
    raise TypeError(f"{name} is a {type(x).__name__}; expected an SVD with U and Vh, or a list")


def _matrices(tensors: list[Tensor], name: str) -> list[Tensor]:
    for tensor in tensors:
        checks.check_matrix(tensor, name)
    return tensors


def _pairs(
    left: list[Tensor], right: list[Tensor], names: tuple[str, str]
) -> list[tuple[Tensor, Tensor]]:
    """Check pairs U (..., m, r), Vh (..., r', m) and bring each to one dtype and one batch."""
    pairs = []
    for U, Vh in zip(left, right, strict=True):
        checks.check_devices(**{names[0]: U, names[1]: Vh})
        if U.shape[-2] != Vh.shape[-1] or U.shape[:-2] != Vh.shape[:-2]:
            raise ValueError(
                f"shapes do not chain: {names[0]} is {tuple(U.shape)} and {names[1]} is "
                f"{tuple(Vh.shape)}; expected (..., m, r) and (..., r', m) with the same m"
            )
        dtype = result_dtype(torch.promote_types(U.dtype, Vh.dtype))
        pairs.append((U.to(dtype), Vh.to(dtype)))
    return pairs


def _enter_pairs(
    U: Array | Sequence[Array], Vh_next: Array | Sequence[Array]
) -> tuple[list[tuple[Tensor, Tensor]], Leave]:
    (left, right), leave = enter_together(U=U, Vh_next=Vh_next)
    pairs = _pairs(_matrices(left, "U"), _matrices(right, "Vh_next"), ("U", "Vh_next"))
    return pairs, leave


def _operator(pairs: list[tuple[Tensor, Tensor]], k: int) -> list[Tensor]:
    if not pairs:
        return []
    diagonals: list[Tensor] = _diagonals([u for u, _ in pairs], [v for _, v in pairs], k)
    return diagonals


def _kernel(U: list[Tensor], Vh_next: list[Tensor], k: int) -> list[Tensor]:
    counts = [min(k, u.shape[-1], v.shape[-2]) for u, v in zip(U, Vh_next, strict=True)]
    with torch.no_grad():
        module = dispatch.backend("alignment", U[0].device.type)
        return align(module, list(zip(U, Vh_next, strict=True)), counts)[0]


schemas.implement("alignment_diagonals", _kernel)
schemas.not_differentiable("alignment_diagonals", "detach its inputs")
