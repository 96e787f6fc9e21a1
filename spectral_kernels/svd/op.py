"""Singular values and singular value decompositions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.entry.arrays import Array
from spectral_kernels.entry.factors import enter_matrices
from spectral_kernels.entry.readable import resolved_list
from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.runtime import dispatch, numerics, schemas

_svd = schemas.operator("svd")
_svdvals = schemas.operator("svdvals")


def svd(
    A: Array | Decomposed | Sequence[Array | Decomposed], *, check_finite: bool = False
) -> SVD | list[SVD]:
    """Return the thin singular value decomposition A = U diag(S) Vh.

    Args:
        A: (..., m, n) float16, bfloat16, float32 or float64; torch, NumPy or CuPy. A list or
            tuple of matrices of any shapes gives a list. A ``Decomposed`` of rank k stands for its
            product, which is not formed, and gives its min(k, r) triplets.
        check_finite: raise on NaN or Inf instead of returning NaN for the matrix that has it.

    Returns:
        ``SVD(U (..., m, r), S (..., r), Vh (..., r, n))`` with r = min(m, n), S descending, the
        largest entry of each column of U positive; float64 for float64, else float32. Declared
        non-differentiable: ``svdvals`` has a gradient.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: fewer than two dimensions, factors that do not chain, mixed devices, or NaN/Inf
            with ``check_finite``.

    Example:
        >>> A = np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> U, S, Vh = sk.svd(A)
        >>> S.round(6)
        array([3., 2.])
        >>> np.allclose(U * S @ Vh, A)
        True
        >>> [found.S.shape for found in sk.svd([np.ones((8, 3)), np.ones((2, 5))])]
        [(3,), (2,)]
    """
    matrices = enter_matrices(A, vectors=None, check_finite=check_finite)
    parts = _svd(matrices.tensors) if matrices.tensors else ([], [], [])
    svds = [SVD(*usv) for usv in zip(*parts, strict=True)]
    lifted = matrices.lifted(svds)
    for i in matrices.cores:
        U, Vh = numerics.fix_signs(lifted[i].U, lifted[i].Vh)
        lifted[i] = SVD(U, lifted[i].S, Vh)
    result: SVD | list[SVD] = matrices.leave(lifted)
    return result


def svdvals(
    A: Array | Decomposed | Sequence[Array | Decomposed], *, check_finite: bool = False
) -> Array | list[Array]:
    """Return the singular values of A, descending.

    float16, bfloat16 and float32 are solved in float64: errors are below 8 eps sigma_1 of float32,
    mostly half an eps. float64 is solved in float64, by Householder's reduction, with errors below
    (8 + max(m, n)) eps sigma_1 of float64 (``numerics.value_rounding``), mostly a few eps.

    Args:
        A: (..., m, n), as for ``svd``.
        check_finite: as for ``svd``.

    Returns:
        S (..., min(m, n)), the first k for a ``Decomposed`` of rank k. Differentiable: the gradient
        is U diag(g) V^T, which has no 1 / (sigma_i^2 - sigma_j^2) terms and stays finite for
        repeated values; the factors of a ``Decomposed`` get theirs through the product rule.

    Raises:
        TypeError, ValueError: as for ``svd``.

    Example:
        >>> sk.svdvals(np.diag([1.0, 4.0, 2.0])).round(6)
        array([4., 2., 1.])
        >>> W = torch.eye(2, requires_grad=True)
        >>> sk.svdvals(W).sum().backward()  # the nuclear norm, whose gradient is U V^T
        >>> torch.allclose(W.grad, torch.eye(2))
        True
    """
    matrices = enter_matrices(A, check_finite=check_finite)
    return matrices.leave(matrices.whole(singular_values(matrices.tensors)))


def singular_values(tensors: list[Tensor]) -> list[Tensor]:
    """Return the differentiable singular values of checked tensors."""
    # The dispatcher cannot choose a device from an empty list.
    values: list[Tensor] = _svdvals(tensors) if tensors else []
    return values


def svd_list(matrices: list[Tensor]) -> list[SVD]:
    """Return the SVDs of many tensors on one device, unchecked and without gradients.

    For callers that run at every training step: past the checks and the operator's dispatch,
    one compiled call for the whole list. A matrix with NaN gives NaN for itself alone. That a
    matrix can be read is checked even here: else it would end the process.
    """
    if not matrices:
        return []
    with torch.no_grad():
        matrices = resolved_list(matrices)
        results: list[SVD] = dispatch.backend("svd", matrices[0].device.type).svd(matrices)
    return results


def svdvals_list(matrices: list[Tensor]) -> list[Tensor]:
    """Return the singular values of many tensors; see ``svd_list``."""
    if not matrices:
        return []
    with torch.no_grad():
        matrices = resolved_list(matrices)
        values: list[Tensor] = dispatch.backend("svd", matrices[0].device.type).svdvals(matrices)
    return values


def _svd_kernel(A: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    results = svd_list(A)
    return [x.U for x in results], [x.S for x in results], [x.Vh for x in results]


def _setup(ctx: Any, inputs: tuple[list[Tensor]], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[0])
    # Values that the loss does not use get None here, and no decomposition in the backward.
    ctx.set_materialize_grads(False)


def _svdvals_backward(ctx: Any, grads: list[Tensor | None]) -> list[Tensor | None]:
    matrices = ctx.saved_tensors
    wanted = [i for i, g in enumerate(grads) if g is not None and matrices[i].requires_grad]
    U, _, Vh = _svd([matrices[i] for i in wanted]) if wanted else ([], [], [])
    gradients: list[Tensor | None] = [None] * len(matrices)
    for j, i in enumerate(wanted):
        g = grads[i]
        assert g is not None
        gradients[i] = ((U[j] * g.unsqueeze(-2)) @ Vh[j]).to(matrices[i].dtype)
    return gradients


schemas.implement("svd", _svd_kernel)
schemas.implement("svdvals", svdvals_list)
schemas.not_differentiable(
    "svd", "detach its input, or use svdvals and the ranks, which have values-only gradients"
)
schemas.differentiate("svdvals", _svdvals_backward, _setup)
