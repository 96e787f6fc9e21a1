"""The gradient of y = x (U Sigma Vh)^T + bias, in products that stay k wide.

With a = x Vh^T, b = a Sigma^T, y = b U^T and the gradient g of y, c = g U and d = c Sigma:

    dU = g^T b      dSigma = c^T a (or its diagonal)      dVh = d^T x      dx = d Vh

Plain torch operations, so that a second derivative exists.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spectral_kernels.decomposed.torch_backend import times_core
from spectral_kernels.numerics import result_dtype

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def usv_matmul_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the factors; the k-wide activations are cheaper to recompute than to keep."""
    x, U, Sigma, Vh, bias = inputs
    ctx.save_for_backward(x, U, Sigma, Vh)
    ctx.bias_dtype = None if bias is None else bias.dtype


def usv_matmul_backward(ctx: Any, grad: Tensor) -> Gradients:
    """Return the gradients of x, U, Sigma, Vh and bias, None where not needed."""
    x, U, Sigma, Vh = ctx.saved_tensors
    need_x, need_U, need_Sigma, need_Vh, need_bias = ctx.needs_input_grad
    dtype = result_dtype(x.dtype)
    shared = U.dim() == 2
    xs, g = (t.to(dtype) for t in (x, grad))
    if shared:
        xs, g = xs.reshape(-1, xs.shape[-1]), g.reshape(-1, g.shape[-1])
    u, s, v = (t.to(dtype) for t in (U, Sigma, Vh))
    c = g @ u
    d = times_core(c, s, u.dim(), transposed=False) if need_x or need_Vh else None
    a = xs @ v.mT if need_U or need_Sigma else None
    d_x = d_U = d_Sigma = d_Vh = d_bias = None
    if need_x:
        d_x = (d @ v).reshape(x.shape).to(x.dtype)
    if need_U and a is not None:
        d_U = (g.mT @ times_core(a, s, u.dim())).to(U.dtype)
    if need_Sigma and a is not None:
        diagonal = s.dim() < u.dim()
        d_Sigma = ((c * a).sum(dim=-2) if diagonal else c.mT @ a).to(Sigma.dtype)
    if need_Vh and d is not None:
        d_Vh = (d.mT @ xs).to(Vh.dtype)
    if need_bias:
        d_bias = g.sum(dim=-2).to(ctx.bias_dtype)
    return d_x, d_U, d_Sigma, d_Vh, d_bias
