"""Gradients of the ranks and norms with respect to the singular values.

With N = sum sigma, H the entropy of p = sigma / N and F the Frobenius norm:

    dH / dsigma_i = -(ln p_i + H) / N             d exp(H) = exp(H) dH
    d(F^2 / sigma_1^2) / dsigma_i = 2 sigma_i / sigma_1^2 - [i = 1] 2 F^2 / sigma_1^3
    dsigma_1 = [i = 1]        dN = 1        dF / dsigma_i = sigma_i / F

The numerical rank is piecewise constant: 0. dH is infinite at sigma_i = 0; there it is set to 0,
so that exact zeros (a rank-deficient matrix) do not turn a whole weight into NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def summarize_setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    """Save the spectra; tables that the loss does not use get None in the backward."""
    ctx.save_for_backward(*inputs[0])
    ctx.set_materialize_grads(False)


def summarize_backward(
    ctx: Any, grads: list[Tensor | None]
) -> tuple[list[Tensor | None], None, None, None]:
    """Return the gradient of each spectrum from that of its table of seven columns."""
    gradients = [
        None if g is None or not S.requires_grad else _gradient(S, g)
        for S, g in zip(ctx.saved_tensors, grads, strict=True)
    ]
    return gradients, None, None, None


def _gradient(S: Tensor, grad: Tensor) -> Tensor:
    if S.numel() == 0:
        return torch.zeros_like(S)
    s = S.double()
    top, first = s.max(dim=-1, keepdim=True)
    scale = torch.where(top > 0, top, 1.0)
    # In x = sigma / sigma_1 nothing overflows; the powers of the scale come back at the end.
    x = s / scale
    total = x.sum(dim=-1, keepdim=True)
    squares = (x * x).sum(dim=-1, keepdim=True)
    p = x / torch.where(total > 0, total, 1.0)
    entropy = torch.special.entr(p).sum(dim=-1, keepdim=True)
    safe = torch.where(total > 0, total, 1.0)
    d_entropy = torch.where(x > 0, -(torch.log(p) + entropy) / safe, 0.0) / scale
    largest = torch.zeros_like(x).scatter_(-1, first, 1.0)
    d_stable = 2 * (x - largest * squares) / scale
    d_frobenius = x / torch.where(squares > 0, squares, 1.0).sqrt()
    g = grad.unsqueeze(-2).unbind(-1)
    # The order of rank.torch_backend.COLUMNS; column 3, the numerical rank, contributes nothing.
    gradient = (
        (g[0] + g[1] * entropy.exp()) * d_entropy
        + g[2] * d_stable
        + g[4] * largest
        + g[5] * torch.ones_like(x)
        + g[6] * d_frobenius
    )
    return torch.where(torch.isfinite(total), gradient, float("nan")).to(S.dtype)
