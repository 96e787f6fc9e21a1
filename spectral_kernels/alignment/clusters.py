r"""Singular values that are too close together to tell their vectors apart.

Let every matrix in question, the present one and those it is compared with, have its singular
values within |sigma_i - s_i| <= radius_i. Where the interval of s_i meets no other one, sigma_i
stays the i-th value and simple on every path between these matrices, so that its pair of vectors
can be followed (Kato, Perturbation Theory for Linear Operators, II.1); where intervals overlap,
vectors may have been exchanged or turned into each other, and only the subspace that they span
together is a fact. By Weyl radius_i = ||E||_2 will do for a change E; then a gap beyond 2 ||E||_2
turns the vectors of a single value by sin(theta) <= ||E||_2 / (gap - ||E||_2) < 1 (Wedin, BIT 12,
1972).

A cluster is a chain of overlapping intervals. Its subspaces are compared by the overlap, whose
value does not depend on the basis:

    agreement of cluster C = ||U_C^T U'_C||_F ||V_C^T V'_C||_F / |C|,

the geometric mean of ``subspace_overlap`` on the two sides. For a cluster of one it is
|u_i . u'_i| |v_i . v'_i|, the diagonal of Eq. 5 of Yunis et al.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.alignment.op import agreement_pairs, of_both_sides
from spectral_kernels.alignment.prepared import align
from spectral_kernels.alignment.torch_backend import find_clusters
from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, enter, from_tensor, kind, to_tensor
from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import dispatch, schemas
from spectral_kernels.runtime.numerics import result_dtype

_cosines = schemas.operator("cluster_cosines")


def singular_value_clusters(
    S: Array | Sequence[Array], radius: Array | float | Sequence[Any]
) -> Array | list[Array]:
    """Return which singular values belong together, since their intervals s +- radius overlap.

    Args:
        S: (..., k) singular values, descending; a list or tuple gives a list.
        radius: how far each value may move or be wrong: a number, or (..., k) of the same kind
            as S; for a list a list of these, or one number for all. Not negative.

    Returns:
        (..., k) int64: the index of the first value of each value's cluster, so that
        ``clusters == arange(k)`` where a cluster starts. NaN is a cluster of its own.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: a negative radius, shapes that do not fit, S without dimension.

    Example:
        >>> sk.singular_value_clusters(np.array([3.0, 1.01, 1.0]), 0.02)
        array([0, 1, 1])
    """
    tensors, radii, likes = _enter(S, radius)
    labels = [from_tensor(find_clusters(s, r)[0], like)
              for s, r, like in zip(tensors, radii, likes, strict=True)]  # fmt: skip
    return labels if isinstance(S, (list, tuple)) else labels[0]


def identifiable_vectors(
    S: Array | Sequence[Array], radius: Array | float | Sequence[Any]
) -> Array | list[Array]:
    """Return for each singular value whether its single vectors mean something.

    They do where the interval s +- radius meets neither another one nor zero, at which the
    vectors of a value mix with the null space, or with those of -s (the eigenvalues of
    [[0, A], [A^T, 0]] are +-sigma_i).

    Args:
        S, radius: as for ``singular_value_clusters``.

    Returns:
        (..., k) bool. The last of a truncated spectrum may have a neighbour that S does not show.

    Raises:
        TypeError, ValueError: as for ``singular_value_clusters``.

    Example:
        >>> sk.identifiable_vectors(np.array([3.0, 1.01, 1.0]), 0.02)
        array([ True, False, False])
    """
    tensors, radii, likes = _enter(S, radius)
    flags = [from_tensor(find_clusters(s, r)[1], like)
             for s, r, like in zip(tensors, radii, likes, strict=True)]  # fmt: skip
    return flags if isinstance(S, (list, tuple)) else flags[0]


def subspace_agreement(
    svd_a: SVD | Sequence[SVD], svd_b: SVD | Sequence[SVD], clusters: Array | Sequence[Array]
) -> Array | list[Array]:
    """Return ||U_C^T U'_C||_F ||V_C^T V'_C||_F / |C| for the cluster C of every index.

    What ``singular_vector_agreement`` says where a cluster is one vector, and a number that does
    not depend on the choice of basis where it is not.

    Args:
        svd_a: the SVD of an (..., m, n) matrix; a list of SVDs gives a list.
        svd_b: the SVD of a matrix of the same shape; its vectors of the same indices take part.
        clusters: (..., k) int64 from ``singular_value_clusters``; both must have k triplets.
            Cut it to as many as both have: a cluster that is cut is compared in part.

    Returns:
        (..., k) in [0, 1]. Declared non-differentiable.

    Raises:
        TypeError: integer or complex dtype, an argument without U and Vh, clusters that are not
            int64.
        ValueError: m or n differ, fewer than k triplets, mixed devices or kinds.

    Example:
        >>> a, b = sk.svd(np.diag([3.0, 1.01, 1.0])), sk.svd(np.diag([3.0, 1.0, 1.01]))
        >>> sk.singular_vector_agreement(a, b).round(6)  # two vectors have changed places
        array([1., 0., 0.])
        >>> sk.subspace_agreement(a, b, sk.singular_value_clusters(a.S, 0.02)).round(6)
        array([1., 1., 1.])
    """
    left, right, leave = agreement_pairs(svd_a, svd_b)
    given = list(clusters) if isinstance(clusters, (list, tuple)) else [clusters]
    if len(given) != len(left):
        raise ValueError(f"{len(given)} arrays of clusters for {len(left)} SVDs; expected as many")
    first = [_labels(c, u) for c, (u, _) in zip(given, left, strict=True)]
    for labels, (u, ut), (_, v) in zip(first, left, right, strict=True):
        count = min(u.shape[-1], ut.shape[-2], v.shape[-2])
        if labels.shape[:-1] != u.shape[:-2] or labels.shape[-1] > count:
            raise ValueError(
                f"clusters have shape {tuple(labels.shape)}; expected {tuple(u.shape[:-2])} and "
                f"at most {count} entries, the number of triplets that both have"
            )
    if not left:
        return []
    _, both = _cosines(
        [u for u, _ in (*left, *right)], [v for _, v in (*left, *right)], [*first, *first]
    )
    agreements: Array | list[Array] = leave(of_both_sides(both))
    return agreements


def cluster_agreement_list(
    pairs: list[tuple[SVD, SVD]], first: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return ``singular_vector_agreement`` and ``subspace_agreement`` of many pairs.

    Unchecked, without gradients, one compiled call for the whole list. ``first`` (k,) int64 says
    how many vectors take part.
    """
    if not pairs:
        return [], []
    left = [(a.U, b.U.mT) for a, b in pairs]
    right = [(a.Vh.mT, b.Vh) for a, b in pairs]
    with torch.no_grad():
        lines, cosines = _kernel_of_pairs([*left, *right], [*first, *first])
        return of_both_sides(lines), of_both_sides(cosines)


def cluster_cosines_list(pairs: list[tuple[Tensor, Tensor]], first: list[Tensor]) -> list[Tensor]:
    """Return ||U_C^T V_C||_F / sqrt(|C|), the root of ``subspace_overlap``, of every index's
    cluster C, for pairs (U, Vh); unchecked."""
    if not pairs:
        return []
    with torch.no_grad():
        return _kernel_of_pairs(pairs, first)[1]


def _enter(S: Any, radius: Any) -> tuple[list[Tensor], list[Tensor], list[str]]:
    tensors, _ = enter(S, "S")
    single = not isinstance(S, (list, tuple))
    likes = [kind(S)] if single else [kind(item) for item in S]
    several = isinstance(radius, (list, tuple))
    given = list(radius) if several else [radius] * len(tensors)
    if len(given) != len(tensors) or (several and single):
        raise ValueError(
            f"radius: {'a list of' if several else ''} {len(given)} for "
            f"{'one array S' if single else f'{len(tensors)} arrays'}; expected one for each"
        )
    radii = []
    for s, r, name in zip(tensors, given, checks.names("S", len(tensors), single), strict=True):
        checks.check_dtype(s, name)
        if s.dim() < 1:
            raise ValueError(f"{name} has shape (); expected at least one dimension (..., k)")
        radii.append(_radius(s, r, name))
    return [s.to(result_dtype(s.dtype)) for s in tensors], radii, likes


def _radius(S: Tensor, radius: Any, name: str) -> Tensor:
    if kind(radius):
        tensor = to_tensor(radius, "radius")
        checks.check_dtype(tensor, "radius")
        checks.check_devices(**{name: S, "radius": tensor})
        fits = tensor.dim() <= S.dim() and all(
            a in (1, b) for a, b in zip(reversed(tensor.shape), reversed(S.shape), strict=False)
        )
        if not fits:
            raise ValueError(
                f"radius has shape {tuple(tensor.shape)}; expected one that broadcasts to "
                f"{tuple(S.shape)}, that of {name}"
            )
    else:
        tensor = torch.tensor(float(radius), dtype=torch.float64, device=S.device)
    if bool((tensor < 0).any()):
        raise ValueError(f"radius: expected no negative number, got {float(tensor.min())}")
    return tensor.expand(S.shape)


def _labels(clusters: Any, like: Tensor) -> Tensor:
    # `to_tensor` takes floating NumPy arrays alone.
    labels = torch.as_tensor(clusters)
    if labels.dtype != torch.int64:
        raise TypeError(
            f"clusters have dtype {str(labels.dtype).removeprefix('torch.')}; expected int64 from "
            "singular_value_clusters"
        )
    checks.check_devices(**{"svd_a.U": like, "clusters": labels})
    return labels


def _kernel_of_pairs(
    pairs: list[tuple[Tensor, Tensor]], first: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    module = dispatch.backend("alignment", pairs[0][0].device.type)
    return align(module, pairs, [clusters.shape[-1] for clusters in first], first)


def _kernel(
    U: list[Tensor], Vh_next: list[Tensor], first: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    with torch.no_grad():
        return _kernel_of_pairs(list(zip(U, Vh_next, strict=True)), first)


schemas.implement("cluster_cosines", _kernel)
schemas.not_differentiable("cluster_cosines", "detach its inputs")
