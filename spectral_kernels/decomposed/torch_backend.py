"""x (U Sigma Vh)^T as a chain of products that never forms the m x n matrix, and its gradient.

y = ((x Vh^T) Sigma^T) U^T + bias. With p rows in x, Sigma is applied to the p x k activations
where p is smaller than both sides, and folded into the smaller factor otherwise.

Float16 and bfloat16 are multiplied in float32 and rounded once, at the end: two intermediate
roundings of 2^-8 would cost more accuracy than the format itself.
"""

from __future__ import annotations

from torch import Tensor

from spectral_kernels.numerics import result_dtype

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def usv_matmul(
    x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return x (U Sigma Vh)^T + bias for x (..., p, n) or (p, n), in the dtype of x."""
    dtype = result_dtype(x.dtype)
    core, U, Sigma, Vh = (t.to(dtype) for t in (x, U, Sigma, Vh))
    # One long product instead of many short ones where the factors are shared.
    rows = core.flatten(0, -2) if U.dim() == 2 else core
    if Sigma.dim() == U.dim() and rows.shape[-2] > min(U.shape[-2], Vh.shape[-1]):
        U, Vh = (U @ Sigma, Vh) if U.shape[-2] <= Vh.shape[-1] else (U, Sigma @ Vh)
        hidden = rows @ Vh.mT
    else:
        hidden = times_core(rows @ Vh.mT, Sigma, U.dim())
    y = hidden @ U.mT
    if bias is not None:
        y += bias.to(dtype).unsqueeze(-2)
    y = y.reshape(*x.shape[:-1], U.shape[-2])
    return y.to(x.dtype) if out is None else out.copy_(y)


def usv_backward(
    grad: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: list[bool]
) -> Gradients:
    """Return the gradients of x, U, Sigma, Vh and bias, None where not ``needed``.

    With a = x Vh^T, b = a Sigma^T, y = b U^T and the gradient g of y, c = g U and d = c Sigma:

        dU = g^T b      dSigma = c^T a (or its diagonal)      dVh = d^T x      dx = d Vh

    Each in the dtype of what it is the gradient of. Plain torch operations: a derivative exists.
    """
    need_x, need_U, need_Sigma, need_Vh, need_bias = needed
    dtype = result_dtype(x.dtype)
    xs, g = (t.to(dtype) for t in (x, grad))
    if U.dim() == 2:
        xs, g = xs.flatten(0, -2), g.flatten(0, -2)
    u, s, v = (t.to(dtype) for t in (U, Sigma, Vh))
    c = g @ u
    d = times_core(c, s, u.dim(), transposed=False) if need_x or need_Vh else None
    a = xs @ v.mT if need_U or need_Sigma else None
    d_x = d_U = d_Sigma = d_Vh = d_bias = None
    if need_x and d is not None:
        d_x = (d @ v).reshape(x.shape).to(x.dtype)
    if need_U and a is not None:
        d_U = (g.mT @ times_core(a, s, u.dim())).to(U.dtype)
    if need_Sigma and a is not None:
        diagonal = s.dim() < u.dim()
        d_Sigma = ((c * a).sum(dim=-2) if diagonal else c.mT @ a).to(Sigma.dtype)
    if need_Vh and d is not None:
        d_Vh = (d.mT @ xs).to(Vh.dtype)
    if need_bias:
        d_bias = g.sum(dim=-2).to(x.dtype)
    return d_x, d_U, d_Sigma, d_Vh, d_bias


def times_core(a: Tensor, Sigma: Tensor, dims: int, *, transposed: bool = True) -> Tensor:
    """Return a Sigma^T (or a Sigma) for a dense or a diagonal core; ``dims`` is that of U."""
    if Sigma.dim() < dims:
        return a * Sigma.unsqueeze(-2)
    return a @ (Sigma.mT if transposed else Sigma)
