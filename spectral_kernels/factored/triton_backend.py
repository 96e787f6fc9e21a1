"""Launchers of the Triton kernels; what ``tiling`` leaves to torch's products goes there."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.factored import (
    split_products,
    tiling,
    torch_backend,
    triton_backward_kernels,
    triton_kernels,
)
from spectral_kernels.factored.cost import Direction, Problem, Tiles
from spectral_kernels.factored.gradients import Gradients
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.triton.host import cdiv, launch

__all__ = ["usv_backward", "usv_matmul"]


def usv_matmul(
    x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return x (U Sigma Vh)^T + bias for x (..., p, n) or (p, n), in the dtype of x.

    Any strides; a Sigma or a bias that is not contiguous is copied.
    """
    blocks = _tiles("forward", x, U, Vh)
    if blocks is None and not _split(x, U, Vh):
        return torch_backend.usv_matmul(x, U, Sigma, Vh, bias, out)
    xs, us, sigmas, vs = (_stacked(t, U) for t in (x, U, Sigma, Vh))
    if blocks is None:
        b = None if bias is None else bias.reshape(len(us), -1)
        y = split_products.usv_matmul(xs, us, sigmas, vs, b)
        y = y.view(*x.shape[:-1], U.shape[-2])
        return y if out is None else out.copy_(y)
    # An ``out`` that is no view of (B, p, m) is written through a copy.
    y = x.new_empty(*xs.shape[:-1], us.shape[-2])
    direct = out is not None and out.is_contiguous()
    target = y if out is None or not direct else out.view(y.shape)
    launch(
        triton_kernels.usv_forward,
        len(us) * cdiv(xs.shape[1], blocks["BLOCK_P"]),
        xs,
        x_ptr=xs,
        u_ptr=us,
        sigma_ptr=sigmas.contiguous(),
        v_ptr=vs,
        bias_ptr=None if bias is None else bias.contiguous(),
        y_ptr=target,
        **_sizes(xs, us),
        **_strides(xpn=xs, umk=us, vkn=vs, ypm=target),
        DENSE=sigmas.dim() == 3,
        BIAS=bias is not None,
        SPLIT=x.dtype == torch.bfloat16,
        **blocks,
    )
    shaped = target.reshape(*x.shape[:-1], U.shape[-2])
    return shaped if out is None or direct else out.copy_(shaped)


def usv_backward(
    grad: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: list[bool]
) -> Gradients:
    """Return the gradients of x, U, Sigma, Vh and bias, None where not ``needed``.

    The kernel makes all of them, so a product with frozen parts goes to torch's products.
    """
    blocks = _tiles("backward", x, U, Vh) if all(needed[:4]) else None
    if blocks is None and not _split(x, U, Vh):
        return torch_backend.usv_backward(grad, x, U, Sigma, Vh, needed)
    gs, xs, us, sigmas, vs = (_stacked(t, U) for t in (grad, x, U, Sigma, Vh))
    if blocks is None:
        gradients = split_products.usv_backward(gs, xs, us, sigmas, vs, needed)
    else:
        gradients = _launch_backward(gs, xs, us, sigmas, vs, needed[4], blocks)
    shapes = (x.shape, U.shape, Sigma.shape, Vh.shape, U.shape[:-1])
    d_x, d_U, d_Sigma, d_Vh, d_bias = (
        None if t is None else t.contiguous().view(shape)
        for t, shape in zip(gradients, shapes, strict=True)
    )
    return d_x, d_U, d_Sigma, d_Vh, d_bias


def _launch_backward(
    g: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, with_bias: bool, blocks: Tiles
) -> Gradients:
    """Return the gradients by the kernel, for arguments with one batch dimension."""
    (B, p, n), (_, m, k) = x.shape, U.shape
    dense, split = Sigma.dim() == 3, x.dtype == torch.bfloat16
    chunks = cdiv(p, blocks["CHUNK"])
    width, block_c = blocks["BLOCK_K"], blocks["BLOCK_C"]
    g_blocks = cdiv(m, block_c)
    columns = cdiv(n, block_c) + g_blocks
    row_tiles = chunks * blocks["CHUNK"] // blocks["BLOCK_P"]
    float32 = x.new_empty(0, dtype=torch.float32).new_empty
    d_x, d_U, d_Vh = x.new_empty(B, p, n), x.new_empty(B, m, k), x.new_empty(B, k, n)
    d_bias = x.new_empty(B, m) if with_bias else None
    d_sigmas = float32(B, g_blocks, width, width if dense else 1)
    counters = torch.zeros(
        1 + B * (2 * row_tiles + 2 * chunks + columns), dtype=torch.int32, device=x.device
    )
    launch(
        triton_backward_kernels.usv_backward,
        B * (2 * row_tiles * blocks["SPLITS"] + chunks * columns),
        x,
        g_ptr=g,
        x_ptr=x,
        u_ptr=U,
        sigma_ptr=Sigma.contiguous(),
        v_ptr=Vh,
        dx_ptr=d_x,
        du_ptr=d_U,
        dsigma_ptr=d_sigmas,
        dv_ptr=d_Vh,
        # Never written where there is none, but an address all the same.
        dbias_ptr=d_U if d_bias is None else d_bias,
        counters_ptr=counters,
        parts_ptr=float32(B * 2 * row_tiles * blocks["SPLITS"] * blocks["BLOCK_P"] * width),
        planes_ptr=_planes(x, B * 2 * chunks * blocks["CHUNK"] * width, split=split),
        sums_ptr=float32(B * columns * block_c * (width + 1)),
        chunks=chunks,
        **_sizes(x, U),
        **_strides(gpm=g, xpn=x, umk=U, vkn=Vh),
        DENSE=dense,
        BIAS=with_bias,
        SPLIT=split,
        **blocks,
    )
    d_Sigma = d_sigmas.sum(dim=1)[:, :k, :k].to(Sigma.dtype)
    return d_x, d_U, d_Sigma, d_Vh, d_bias


def _tiles(direction: Direction, x: Tensor, U: Tensor, Vh: Tensor) -> Tiles | None:
    """Return the kernel's tiles; None for float64, and where there is nothing to multiply."""
    if x.dtype == torch.float64 or 0 in (*x.shape, *U.shape, *Vh.shape):
        return None
    batch = 1 if U.dim() == 2 else U.shape[:-2].numel()
    problem = Problem(
        batch=batch,
        p=x.shape[:-1].numel() // batch,
        m=U.shape[-2],
        n=Vh.shape[-1],
        k=U.shape[-1],
        entry_bytes=x.element_size(),
        split=x.dtype == torch.bfloat16,
        hopper=x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 9,
    )
    return tiling.choose(direction, problem, fused=dispatch.forced() == "triton")


def _split(x: Tensor, U: Tensor, Vh: Tensor) -> bool:
    """Whether torch's products are those of bfloat16, which need something to multiply."""
    return x.dtype == torch.bfloat16 and 0 not in (*x.shape, *U.shape, *Vh.shape)


def _stacked(t: Tensor, U: Tensor) -> Tensor:
    """Return t with one batch dimension.

    That of factors; B = 1 where they are shared, and then all rows of x are together.
    """
    if t.dim() < U.dim():
        return t.reshape(-1, t.shape[-1])
    return t.flatten(0, -2).unsqueeze(0) if U.dim() == 2 else t.flatten(0, -3)


def _planes(x: Tensor, numbers: int, *, split: bool) -> Tensor:
    """Return memory for a and d: high and low of 16 bits, or float32."""
    dtype, count = (x.dtype, 2 * numbers) if split else (torch.float32, numbers)
    return torch.empty(count, dtype=dtype, device=x.device)


def _sizes(x: Tensor, U: Tensor) -> dict[str, int]:
    return {"P": x.shape[1], "M": U.shape[1], "N": x.shape[2], "K": U.shape[2]}


def _strides(**tensors: Tensor) -> dict[str, int]:
    """Return {"stride_xb": ..., "stride_xp": ..., "stride_xn": ...} for xpn=x, and so on."""
    return {
        f"stride_{name[0]}{axis}": t.stride(i)
        for name, t in tensors.items()
        for i, axis in enumerate(f"b{name[1:]}")
    }
