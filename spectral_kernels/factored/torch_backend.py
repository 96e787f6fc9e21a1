"""x (U Sigma Vh)^T as a chain of products that never forms the m x n matrix, and its gradient.

Where the core goes, and every product, is in ``folding``. What is k wide lies by ranks, (k, p)
rather than (p, k): BLAS loses a fifth of its speed where the last dimension of a result is no
multiple of its tile, and k, unlike p, m and n, is often odd.

Float16 and bfloat16 are multiplied in float32 and rounded once, at the end: two intermediate
roundings of 2^-8 would cost more accuracy than the format itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.factored.cpu_products import mm
from spectral_kernels.factored.folding import backward_way, forward_way
from spectral_kernels.factored.torch_gradients import core_times, gradients, times_core
from spectral_kernels.runtime.numerics import result_dtype

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def usv_matmul(
    x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return x (U Sigma Vh)^T + bias for x (..., p, n) or (p, n), in the dtype of x."""
    dtype = result_dtype(x.dtype)
    if x.dtype != dtype:
        x_wide, U, Sigma, Vh = (t.to(dtype) for t in (x, U, Sigma, Vh))
        bias = None if bias is None else bias.to(dtype)
    else:
        x_wide = x
    # One long product instead of many short ones where the factors are shared.
    rows = x_wide.flatten(0, -2) if U.dim() == 2 and x.dim() != 2 else x_wide
    way = forward_way(rows.shape[-2], U.shape[-2], Vh.shape[-1])
    if way == "left":
        U = times_core(U, Sigma)
    elif way == "right":
        Vh = core_times(Sigma, Vh)
    hidden = mm(Vh, rows.mT)
    if way == "rows":
        hidden = core_times(Sigma, hidden)
    # Written in place where out has the rows of one product.
    target = None
    if out is not None and U.dim() == 2 and out.dtype == dtype and out.is_contiguous():
        target = out.flatten(0, -2)
    y = _last_product(hidden.mT, U.mT, bias, target)
    if out is not None:
        return out if target is not None else out.copy_(y.view(out.shape))
    if y.dim() != x.dim():
        y = y.view(*x.shape[:-1], U.shape[-2])
    return y.to(x.dtype)


def _last_product(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """Return a b + bias, which is ``out`` where given: of two matrices."""
    if out is not None:
        return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)
    if bias is None or b.dim() == 2:
        return mm(a, b, bias)
    # In place on a product, a bias that torch.vmap has many of would not fit.
    batch, m = b.shape[:-2], b.shape[-1]
    rows = bias.reshape(batch.numel(), 1, m)
    return torch.baddbmm(rows, a.flatten(0, -3), b.flatten(0, -3)).view(*batch, a.shape[-2], m)


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
    core = 1 if Sigma.dim() < U.dim() else U.shape[-1]
    way = backward_way(x.shape[-2], U.shape[-2], Vh.shape[-1], core, needed)
    d_x, d_U, d_Sigma, d_Vh = gradients(way, grad, x, U, Sigma, Vh, needed[:4])
    if d_x is not None and d_x.dim() != len(shape):
        d_x = d_x.view(shape)
    d_bias = grad.sum(dim=-2) if needed[4] else None
    found = (d_x, d_U, d_Sigma, d_Vh, d_bias)
    if given == dtype:
        return found
    d_x, d_U, d_Sigma, d_Vh, d_bias = (None if t is None else t.to(given) for t in found)
    return d_x, d_U, d_Sigma, d_Vh, d_bias
