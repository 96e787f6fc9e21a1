r"""The core of U Sigma Vh: a small matrix with the same singular values, without the m x n one.

With U = W_u R_u and Vh^T = W_v R_v (``triangles.py``) the core is C = R_u Sigma R_v^T (p, q), p =
min(m, k), q = min(k, n), and U Sigma Vh = W_u C W_v^T: for orthonormal W_u and W_v it has the
singular values of C, and its vectors are W_u and W_v times those of C. Diagonals of R_u and R_v are
positive, which makes C a continuous function of the factors: a tracker can follow it.

What is proved of the vector sigma of the singular values of U Sigma Vh, for W and E as they are. By
Ostrowski's theorem (Horn, Johnson, Matrix Analysis, 4.5.9) each singular value of W_u C W_v^T is
one of C times a number within sqrt((1 +- f_u)(1 +- f_v)), f the departures; and |sqrt(1 +- f) - 1|
<= h = f (1 + f) / 2. By Mirsky's theorem what is added to a matrix moves the vector of its singular
values by no more than its Frobenius norm. With z = d_u^T |Sigma| d_v, which is at least the
Frobenius norm of diag(d_u) Sigma R_v^T, of R_u Sigma diag(d_v) and of |R_u| |Sigma| |R_v^T|, and e
the residuals,

    ||sigma - sigma(C)||_2 <= ((1 + h_u)(1 + h_v) - 1) ||C||_F        W_u and W_v
                            + (e_u (1 + h_v) + e_v (1 + h_u) + e_u e_v) z      E_u and E_v
                            + (1 + h_u)(1 + h_v) (gamma_(2k+2) z + rounding of C to its type).

Float32 and narrower factors take the Gram matrices where these prove values within 8 eps of
float32, and Householder's QR where not; float64 factors always the latter, since a Gram matrix
loses half the digits. Each costs about k^2 (m + n) operations more than it saves: m n k are saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.numerics import autocast_off, result_dtype


class Core(NamedTuple):
    """A small matrix with the singular values of U Sigma Vh, and the way back.

    ``matrix`` (..., p, q), p = min(m, k), q = min(k, n), continuous in the factors; ``error`` (...)
    float64, a bound of the 2-norm of the differences of all singular values; ``left`` (..., m, p)
    with orthonormal columns and ``right`` (..., q, n) with orthonormal rows, of no columns and no
    rows where vectors were not asked for. Float64 where a factor is, else float32.
    """

    matrix: Tensor
    error: Tensor
    left: Tensor
    right: Tensor


def cores(factors: Sequence[Decomposed], *, vectors: bool | Sequence[bool]) -> list[Core]:
    """Return the core of each U (..., m, k), Sigma (..., k, k), Vh (..., k, n) of tensors.

    All of them in one call. A matrix with NaN or Inf in a factor, or with a core beyond the range
    of its type (``overflow.py``), is NaN throughout, and others are what they are without it.
    Without gradients.
    Waits for a GPU, to find out which matrices need Householder's QR.

    Args:
        factors: on one device, unchecked, of any floating dtypes and strides.
        vectors: whether ``left`` and ``right`` are wanted, one answer or one for each.
    """
    wanted = [vectors] * len(factors) if isinstance(vectors, bool) else list(vectors)
    if not factors:
        return []
    module: Any = dispatch.backend("entry.core", factors[0].U.device.type)
    with torch.no_grad():
        computed: list[Core] = module.cores(list(factors), wanted)
    return computed


def lift(core: Core, svd: SVD, out: SVD | None = None) -> SVD:
    """Return the singular vectors of U Sigma Vh from those of its core; S is that of ``svd``.

    Args:
        core: with vectors, unless ``svd`` has none.
        svd: (..., p, t), (..., t), (..., t, q) of ``core.matrix``, t triplets.
        out: where to write; fields of the shapes (..., m, t), (..., t), (..., t, n). Without it a
            result may share its memory with ``svd``, where a side is not longer than k.
    """
    with autocast_off(svd.S.device.type):
        if out is None:
            # Left vectors lie by columns, in every result of the library.
            left = _lifted(svd.U.mT, core.left.mT, None).mT
            return SVD(left, svd.S, _lifted(svd.Vh, core.right, None))
        _lifted(svd.U.mT, core.left.mT, out.U.mT)
        _lifted(svd.Vh, core.right, out.Vh)
        out.S.copy_(svd.S)
        return out


def _lifted(rows: Tensor, basis: Tensor, out: Tensor | None) -> Tensor:
    """Return rows @ basis, a copy at most where the basis is square and so the identity."""
    if not rows.shape[-2]:
        return rows.new_empty((*rows.shape[:-1], basis.shape[-1])) if out is None else out
    if basis.shape[-1] != basis.shape[-2]:
        return torch.matmul(rows, basis, out=out)
    if out is None or out.data_ptr() == rows.data_ptr():
        return rows
    return out.copy_(rows)


def core_dtype(x: Decomposed) -> torch.dtype:
    """Return the type of the core, which is that of ``recompose``."""
    return result_dtype(torch.promote_types(x.U.dtype, x.Vh.dtype))
