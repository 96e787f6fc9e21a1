"""x (U Sigma Vh)^T as a chain of products that never forms the m x n matrix.

Where Sigma goes, and every product, is in ``folding``, the gradient in ``gradients``. What is k
wide lies by ranks, (k, p) rather than (p, k): BLAS loses a fifth of its speed where the last
dimension of a result is no multiple of its tile, and k, unlike p, m and n, is often odd.

Float16 and bfloat16 are multiplied in float32 and rounded once, at the end: two intermediate
roundings of 2^-8 would cost more accuracy than the format itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.factored.folding import forward_way
from spectral_kernels.factored.gradients import usv_backward
from spectral_kernels.factored.matmul import mm, sigma_times, times_sigma
from spectral_kernels.runtime.numerics import result_dtype

__all__ = ["usv_backward", "usv_matmul"]


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
        U = times_sigma(U, Sigma)
    elif way == "right":
        Vh = sigma_times(Sigma, Vh)
    hidden = mm(Vh, rows.mT)
    if way == "rows":
        hidden = sigma_times(Sigma, hidden)
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
