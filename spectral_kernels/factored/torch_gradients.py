"""The gradients of y = x (U Sigma Vh)^T by each of the ways of ``folding``, under its names.

g is the gradient of y, (p, m) or (*batch, p, m). No more than k (2 p + m + n) numbers of each
matrix are held beside arguments and results.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectral_kernels.factored.cpu_products import mm
from spectral_kernels.factored.folding import Way

Four = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def gradients(
    way: Way, g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: Sequence[bool]
) -> Four:
    """Return the gradients of x, U, Sigma and Vh, each contiguous, None where not ``needed``."""
    if way == "rows":
        return _by_rows(g, x, U, Sigma, Vh, needed)
    if way == "left":
        return _folded_left(g, x, U, Sigma, Vh, needed)
    return _folded_right(g, x, U, Sigma, Vh, needed)


def times_core(A: Tensor, Sigma: Tensor, *, transposed: bool = False) -> Tensor:
    """Return A Sigma, or A Sigma^T, for a dense core (..., k, k) or a diagonal (..., k)."""
    if Sigma.dim() < A.dim():
        return A * Sigma.unsqueeze(-2)
    return mm(A, Sigma.mT if transposed else Sigma)


def core_times(Sigma: Tensor, A: Tensor, *, transposed: bool = False) -> Tensor:
    """Return Sigma A, or Sigma^T A."""
    if Sigma.dim() < A.dim():
        return Sigma.unsqueeze(-1) * A
    return mm(Sigma.mT if transposed else Sigma, A)


def _core_gradient(Sigma: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return left right^T, or its diagonal, for two (..., k, anything)."""
    if Sigma.dim() < left.dim():
        return (left * right).sum(dim=-1)
    return mm(left, right.mT)


def _by_rows(
    g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: Sequence[bool]
) -> Four:
    need_x, need_U, need_Sigma, need_Vh = needed
    d_x = d_U = d_Sigma = d_Vh = None
    if need_U or need_Sigma:
        a = mm(Vh, x.mT)
        d_U = mm(core_times(Sigma, a), g).mT.contiguous() if need_U else None
    if need_x or need_Sigma or need_Vh:
        c = mm(U.mT, g.mT)
        d_Sigma = _core_gradient(Sigma, c, a) if need_Sigma else None
    if need_x or need_Vh:
        d = core_times(Sigma, c, transposed=True)
        d_x = mm(d.mT, Vh) if need_x else None
        d_Vh = mm(d, x) if need_Vh else None
    return d_x, d_U, d_Sigma, d_Vh


def _folded_left(
    g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: Sequence[bool]
) -> Four:
    need_x, need_U, need_Sigma, need_Vh = needed
    d_x = d_U = d_Sigma = d_Vh = None
    if need_U or need_Sigma:
        G = mm(mm(Vh, x.mT), g)
        d_U = times_core(G.mT, Sigma, transposed=True).contiguous() if need_U else None
        d_Sigma = _core_gradient(Sigma, U.mT, G) if need_Sigma else None
        del G
    if need_x or need_Vh:
        d = mm(times_core(U, Sigma).mT, g.mT)
        d_x = mm(d.mT, Vh) if need_x else None
        d_Vh = mm(d, x) if need_Vh else None
    return d_x, d_U, d_Sigma, d_Vh


def _folded_right(
    g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: Sequence[bool]
) -> Four:
    need_x, need_U, need_Sigma, need_Vh = needed
    d_x = d_U = d_Sigma = d_Vh = None
    if need_x or need_U:
        W = core_times(Sigma, Vh)
        d_U = mm(mm(W, x.mT), g).mT.contiguous() if need_U else None
    if need_x or need_Sigma or need_Vh:
        c = mm(U.mT, g.mT)
    if need_x:
        d_x = mm(c.mT, W)
        del W
    if need_Sigma or need_Vh:
        H = mm(c, x)
        d_Sigma = _core_gradient(Sigma, H, Vh) if need_Sigma else None
        d_Vh = core_times(Sigma, H, transposed=True) if need_Vh else None
    return d_x, d_U, d_Sigma, d_Vh
