"""x (U Sigma Vh)^T as a chain of products that never forms the m x n matrix.

y = ((x Vh^T) Sigma^T) U^T + bias. With p rows in x, Sigma is applied to the p x k activations
where p is smaller than both sides, and folded into the smaller factor otherwise.

Float16 and bfloat16 are multiplied in float32 and rounded once, at the end: two intermediate
roundings of 2^-8 would cost more accuracy than the format itself.
"""

from __future__ import annotations

from torch import Tensor

from spectral_kernels.numerics import result_dtype


def usv_matmul(
    x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return x (U Sigma Vh)^T + bias for x (..., p, n) or (p, n), in the dtype of x."""
    dtype = result_dtype(x.dtype)
    core, U, Sigma, Vh = (t.to(dtype) for t in (x, U, Sigma, Vh))
    # One long product instead of many short ones where the factors are shared.
    rows = core.reshape(-1, core.shape[-1]) if U.dim() == 2 else core
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


def times_core(a: Tensor, Sigma: Tensor, dims: int, *, transposed: bool = True) -> Tensor:
    """Return a Sigma^T (or a Sigma) for a dense or a diagonal core; ``dims`` is that of U."""
    if Sigma.dim() < dims:
        return a * Sigma.unsqueeze(-2)
    return a @ (Sigma.mT if transposed else Sigma)
