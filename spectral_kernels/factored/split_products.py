"""usv_matmul and its gradient as products of bfloat16 with float32 sums, on a GPU by cuBLAS.

x and the factors are bfloat16, so x Vh^T and g U are exact but for their float32 sums. Their
results, h of k numbers a row, are float32 and go on as high + low, both bfloat16, side by side:

    h W = [high low] [W; W]        h^T x = (rows of [high low]^T x, first half plus second)

The error is 2^-17 of h. No tensor of the size of x is converted, and every product runs at the rate
of bfloat16, at twice the operations of plain products where h takes part. cuBLAS may sum parts of a
long product in bfloat16 while torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is
set; that is why every long sum here has a float32 result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.factored.gradients import Gradients


def usv_matmul(x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (U Sigma Vh)^T + bias (B, p, m) for x (B, p, n), bfloat16; bias (B, m)."""
    h = times_sigma(exact(x, Vh.mT), Sigma, transposed=True)
    left, right = sides(h, U.mT)
    if bias is None:
        return torch.bmm(left, right)
    return torch.baddbmm(bias.unsqueeze(-2), left, right)


def usv_backward(
    g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: list[bool]
) -> Gradients:
    """Return the gradients of x, U, Sigma, Vh and bias, None where not ``needed``; bfloat16."""
    need_x, need_U, need_Sigma, need_Vh, need_bias = needed
    d_x = d_U = d_Sigma = d_Vh = d_bias = None
    if need_x or need_Vh:
        d = times_sigma(exact(g, U), Sigma, transposed=False)
        d_x = torch.bmm(*sides(d, Vh)) if need_x else None
        d_Vh = over_rows(d, x).bfloat16() if need_Vh else None
    if need_U or need_Sigma:
        G = over_rows(exact(x, Vh.mT), g).mT
        d_U = times_sigma(G, Sigma, transposed=True).bfloat16() if need_U else None
    if need_Sigma:
        diagonal = Sigma.dim() < U.dim()
        wide = (U * G).sum(dim=-2) if diagonal else over_rows(G, U).mT
        d_Sigma = wide.bfloat16()
    if need_bias:
        d_bias = g.sum(dim=-2, dtype=torch.float32).bfloat16()
    return d_x, d_U, d_Sigma, d_Vh, d_bias


def exact(a: Tensor, b: Tensor) -> Tensor:
    """Return a b in float32 for bfloat16 a and b, (B, ., .)."""
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def halves(h: Tensor, dim: int) -> Tensor:
    """Return high and low side by side along ``dim``, with h = high + low to 2^-17."""
    high = h.bfloat16()
    low = (h - high).bfloat16()
    # Inf - Inf is NaN, and an infinite h is to stay what it is.
    return torch.cat((high, torch.where(h.isinf(), 0, low)), dim)


def sides(h: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Return two bfloat16 matrices whose product is h W, for float32 h and bfloat16 W."""
    return halves(h, -1), torch.cat((W, W), -2)


def over_rows(h: Tensor, x: Tensor) -> Tensor:
    """Return h^T x in float32, for float32 h and bfloat16 x."""
    high, low = exact(halves(h, -1).mT, x).chunk(2, dim=-2)
    return high + low


def times_sigma(h: Tensor, Sigma: Tensor, *, transposed: bool) -> Tensor:
    """Return h Sigma^T (or h Sigma) in float32."""
    if Sigma.dim() < h.dim():
        return h * Sigma.unsqueeze(-2)
    return exact(*sides(h, Sigma.mT if transposed else Sigma))
