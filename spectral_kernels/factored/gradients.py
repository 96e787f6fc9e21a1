"""The gradient of usv_matmul, y = x (U Sigma Vh)^T: one operator, or its formulas where these are
to be differentiated again. The formulas are those of ``folding``, under its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.factored.folding import Way, backward_way
from spectral_kernels.factored.matmul import mm, sigma_times, times_sigma
from spectral_kernels.runtime import dispatch, schemas
from spectral_kernels.runtime.numerics import autocast_off, result_dtype
from spectral_kernels.runtime.torch_internals import (
    below_autograd,
    is_batch_of_gradients,
    transformed,
)

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Four = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]

_usv_matmul = schemas.operator("usv_matmul")
_usv_backward = schemas.operator("usv_backward")


class UsvMatmul(torch.autograd.Function):
    """usv_matmul: keeps x, U, Sigma and Vh, and recomputes what is k wide."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Return the product."""
        ctx.save_for_backward(x, U, Sigma, Vh)
        with below_autograd():
            y: Tensor = _usv_matmul(x, U, Sigma, Vh, bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        """Return the gradients of x, U, Sigma, Vh and bias, None where not needed."""
        arguments = (grad, *ctx.saved_tensors, list(ctx.needs_input_grad))
        # create_graph=True: a second derivative needs operations that have one, and many gradients
        # in one call (is_grads_batched=True) need such as torch can do for all of them.
        batched = is_batch_of_gradients(grad)
        if torch.is_grad_enabled() or batched or transformed():
            with autocast_off(grad.device.type):
                return usv_backward(*arguments)
        with below_autograd():
            gradients = iter(_usv_backward(*arguments))
        d_x, d_U, d_Sigma, d_Vh, d_bias = (
            next(gradients) if needed else None for needed in ctx.needs_input_grad
        )
        return d_x, d_U, d_Sigma, d_Vh, d_bias


def _kernel(
    grad: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: list[bool]
) -> list[Tensor]:
    module: Any = dispatch.backend("factored", x.device.type)
    gradients: Gradients = module.usv_backward(grad, x, U, Sigma, Vh, needed)
    return [t for t in gradients if t is not None]


schemas.implement("usv_backward", _kernel)
schemas.autocast("usv_backward", cast=False)
schemas.not_differentiable("usv_backward", "differentiate usv_matmul with create_graph=True")


def usv_backward(
    grad: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: list[bool]
) -> Gradients:
    """Return the gradients of x, U, Sigma, Vh and bias, None where not ``needed``.

    Each contiguous, in the dtype of what it is the gradient of. Plain torch operations on the
    arguments: a derivative exists.
    """
    shape, given = x.shape, x.dtype
    dtype = result_dtype(given)
    if given != dtype:
        grad, x, U, Sigma, Vh = (t.to(dtype) for t in (grad, x, U, Sigma, Vh))
    if U.dim() == 2 and x.dim() != 2:
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
    width = 1 if Sigma.dim() < U.dim() else U.shape[-1]
    way = backward_way(x.shape[-2], U.shape[-2], Vh.shape[-1], width, needed)
    d_x, d_U, d_Sigma, d_Vh = by_way(way, grad, x, U, Sigma, Vh, needed[:4])
    if d_x is not None and d_x.dim() != len(shape):
        d_x = d_x.view(shape)
    d_bias = grad.sum(dim=-2) if needed[4] else None
    gradients = (d_x, d_U, d_Sigma, d_Vh, d_bias)
    if given == dtype:
        return gradients
    d_x, d_U, d_Sigma, d_Vh, d_bias = (None if t is None else t.to(given) for t in gradients)
    return d_x, d_U, d_Sigma, d_Vh, d_bias


def by_way(
    way: Way, g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: Sequence[bool]
) -> Four:
    """Return the gradients of x, U, Sigma and Vh, each contiguous, None where not ``needed``.

    ``g`` is the gradient of y, (p, m) or (*batch, p, m). No more than k (2 p + m + n) numbers of
    each matrix are held beside arguments and results.
    """
    return _WAYS[way](g, x, U, Sigma, Vh, needed)


def _by_rows(
    g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: Sequence[bool]
) -> Four:
    need_x, need_U, need_Sigma, need_Vh = needed
    d_x = d_U = d_Sigma = d_Vh = None
    if need_U or need_Sigma:
        a = mm(Vh, x.mT)
        d_U = mm(sigma_times(Sigma, a), g).mT.contiguous() if need_U else None
    if need_x or need_Sigma or need_Vh:
        c = mm(U.mT, g.mT)
        d_Sigma = _sigma_gradient(Sigma, c, a) if need_Sigma else None
    if need_x or need_Vh:
        d = sigma_times(Sigma, c, transposed=True)
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
        d_U = times_sigma(G.mT, Sigma, transposed=True).contiguous() if need_U else None
        d_Sigma = _sigma_gradient(Sigma, U.mT, G) if need_Sigma else None
        del G
    if need_x or need_Vh:
        d = mm(times_sigma(U, Sigma).mT, g.mT)
        d_x = mm(d.mT, Vh) if need_x else None
        d_Vh = mm(d, x) if need_Vh else None
    return d_x, d_U, d_Sigma, d_Vh


def _folded_right(
    g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: Sequence[bool]
) -> Four:
    need_x, need_U, need_Sigma, need_Vh = needed
    d_x = d_U = d_Sigma = d_Vh = None
    if need_x or need_U:
        W = sigma_times(Sigma, Vh)
        d_U = mm(mm(W, x.mT), g).mT.contiguous() if need_U else None
    if need_x or need_Sigma or need_Vh:
        c = mm(U.mT, g.mT)
    if need_x:
        d_x = mm(c.mT, W)
        del W
    if need_Sigma or need_Vh:
        H = mm(c, x)
        d_Sigma = _sigma_gradient(Sigma, H, Vh) if need_Sigma else None
        d_Vh = sigma_times(Sigma, H, transposed=True) if need_Vh else None
    return d_x, d_U, d_Sigma, d_Vh


_WAYS = {"rows": _by_rows, "left": _folded_left, "right": _folded_right}


def _sigma_gradient(Sigma: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return left right^T, or its diagonal, for two (..., k, anything)."""
    if Sigma.dim() < left.dim():
        return (left * right).sum(dim=-1)
    return mm(left, right.mT)
