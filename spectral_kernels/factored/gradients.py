"""How autograd reaches the gradient of usv_matmul: one operator, or its formulas where these are
to be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectral_kernels.factored import torch_backend
from spectral_kernels.factored.torch_backend import Gradients
from spectral_kernels.runtime import dispatch, schemas
from spectral_kernels.runtime.numerics import autocast_off

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
        with schemas.below_autograd():
            y: Tensor = _usv_matmul(x, U, Sigma, Vh, bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        """Return the gradients of x, U, Sigma, Vh and bias, None where not needed."""
        arguments = (grad, *ctx.saved_tensors, list(ctx.needs_input_grad))
        # create_graph=True: a second derivative needs operations that have one, and many gradients
        # in one call (is_grads_batched=True) need such as torch can do for all of them.
        batched = torch._C._functorch.is_legacy_batchedtensor(grad)
        if torch.is_grad_enabled() or batched or schemas.transformed():
            with autocast_off(grad.device.type):
                return torch_backend.usv_backward(*arguments)
        with schemas.below_autograd():
            found = iter(_usv_backward(*arguments))
        d_x, d_U, d_Sigma, d_Vh, d_bias = (
            next(found) if needed else None for needed in ctx.needs_input_grad
        )
        return d_x, d_U, d_Sigma, d_Vh, d_bias


def _kernel(
    grad: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: list[bool]
) -> list[Tensor]:
    module: Any = dispatch.backend("factored", x.device.type)
    found: Gradients = module.usv_backward(grad, x, U, Sigma, Vh, needed)
    return [t for t in found if t is not None]


schemas.implement("usv_backward", _kernel)
schemas.autocast("usv_backward", cast=False)
schemas.not_differentiable("usv_backward", "differentiate usv_matmul with create_graph=True")
