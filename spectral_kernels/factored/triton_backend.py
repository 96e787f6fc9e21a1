"""Launchers of the Triton kernels; what ``plan`` leaves to torch's products goes there."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.factored import (
    plan,
    split_products,
    torch_backend,
    triton_backward_kernels,
    triton_kernels,
)
from spectral_kernels.factored.model import Direction, Problem, Tiles
from spectral_kernels.factored.torch_backend import Gradients
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.triton import triton_runtime

__all__ = ["usv_backward", "usv_matmul"]


def usv_matmul(
    x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Return x (U Sigma Vh)^T + bias for x (..., p, n) or (p, n), in the dtype of x.

    Any strides; a core or a bias that is not contiguous is copied.
    """
    tiles = _tiles("forward", x, U, Vh)
    if tiles is None and not _split(x, U, Vh):
        return torch_backend.usv_matmul(x, U, Sigma, Vh, bias, out)
    xs, us, vs = _stacked(x, U), _stacked(U, U), _stacked(Vh, U)
    if tiles is None:
        b = None if bias is None else bias.reshape(len(us), -1)
        y = split_products.usv_matmul(xs, us, _core(Sigma, U), vs, b)
        y = y.view(*x.shape[:-1], U.shape[-2])
        return y if out is None else out.copy_(y)
    # An ``out`` that is no view of (B, p, m) is written through a copy.
    y = x.new_empty(*xs.shape[:-1], us.shape[-2])
    direct = out is not None and out.is_contiguous()
    target = y if out is None or not direct else out.view(y.shape)
    triton_runtime.launch(
        triton_kernels.usv_forward,
        len(us) * triton_runtime.cdiv(xs.shape[1], tiles["BLOCK_P"]),
        xs,
        x_ptr=xs,
        u_ptr=us,
        sigma_ptr=Sigma.contiguous(),
        v_ptr=vs,
        bias_ptr=None if bias is None else bias.contiguous(),
        y_ptr=target,
        **_sizes(xs, us),
        **_strides("xpn", xs),
        **_strides("umk", us),
        **_strides("vkn", vs),
        **_strides("ypm", target),
        DENSE=Sigma.dim() == U.dim(),
        BIAS=bias is not None,
        SPLIT=x.dtype == torch.bfloat16,
        **tiles,
    )
    shaped = target.reshape(*x.shape[:-1], U.shape[-2])
    return shaped if out is None or direct else out.copy_(shaped)


def usv_backward(
    grad: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: list[bool]
) -> Gradients:
    """Return the gradients of x, U, Sigma, Vh and bias, None where not ``needed``.

    The kernel makes all of them, so a product with frozen parts goes to torch's products.
    """
    tiles = _tiles("backward", x, U, Vh) if all(needed[:4]) else None
    if tiles is None and not _split(x, U, Vh):
        return torch_backend.usv_backward(grad, x, U, Sigma, Vh, needed)
    gs, xs, us, vs = _stacked(grad, U), _stacked(x, U), _stacked(U, U), _stacked(Vh, U)
    shapes = (x.shape, U.shape, Sigma.shape, Vh.shape, U.shape[:-1])
    if tiles is None:
        found = split_products.usv_backward(gs, xs, us, _core(Sigma, U), vs, needed)
        return _shaped(found, shapes)
    (B, p, n), (_, m, k) = xs.shape, us.shape
    dense = Sigma.dim() == U.dim()
    split = x.dtype == torch.bfloat16
    chunks = triton_runtime.cdiv(p, tiles["CHUNK"])
    width, block_c = tiles["BLOCK_K"], tiles["BLOCK_C"]
    g_blocks = triton_runtime.cdiv(m, block_c)
    blocks = triton_runtime.cdiv(n, block_c) + g_blocks
    row_tiles = chunks * tiles["CHUNK"] // tiles["BLOCK_P"]
    float32 = x.new_empty(0, dtype=torch.float32).new_empty
    dx, dU, dVh = x.new_empty(B, p, n), x.new_empty(B, m, k), x.new_empty(B, k, n)
    d_bias = x.new_empty(B, m) if needed[4] else None
    cores = float32(B, g_blocks, width, width if dense else 1)
    counters = torch.zeros(
        1 + B * (2 * row_tiles + 2 * chunks + blocks), dtype=torch.int32, device=x.device
    )
    triton_runtime.launch(
        triton_backward_kernels.usv_backward,
        B * (2 * row_tiles * tiles["SPLITS"] + chunks * blocks),
        xs,
        g_ptr=gs,
        x_ptr=xs,
        u_ptr=us,
        sigma_ptr=Sigma.contiguous(),
        v_ptr=vs,
        dx_ptr=dx,
        du_ptr=dU,
        dsigma_ptr=cores,
        dv_ptr=dVh,
        # Never written where there is none, but an address all the same.
        dbias_ptr=dU if d_bias is None else d_bias,
        counters_ptr=counters,
        parts_ptr=float32(B * 2 * row_tiles * tiles["SPLITS"] * tiles["BLOCK_P"] * width),
        planes_ptr=_planes(x, B * 2 * chunks * tiles["CHUNK"] * width, split=split),
        sums_ptr=float32(B * blocks * block_c * (width + 1)),
        chunks=chunks,
        **_sizes(xs, us),
        **_strides("gpm", gs),
        **_strides("xpn", xs),
        **_strides("umk", us),
        **_strides("vkn", vs),
        DENSE=dense,
        BIAS=needed[4],
        SPLIT=split,
        **tiles,
    )
    core = cores.sum(dim=1)[:, :k, :k].to(Sigma.dtype)
    return _shaped((dx, dU, core, dVh, d_bias), shapes)


def _tiles(direction: Direction, x: Tensor, U: Tensor, Vh: Tensor) -> Tiles | None:
    """Return the plan's tiles; None for float64, and where there is nothing to multiply."""
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
    return plan.choose(direction, problem, fused=dispatch.forced() == "triton")


def _split(x: Tensor, U: Tensor, Vh: Tensor) -> bool:
    """Whether torch's products are those of bfloat16, which need something to multiply."""
    return x.dtype == torch.bfloat16 and 0 not in (*x.shape, *U.shape, *Vh.shape)


def _core(Sigma: Tensor, U: Tensor) -> Tensor:
    """Return Sigma (B, k, k) or (B, k)."""
    return Sigma.reshape(-1, *Sigma.shape[U.dim() - 2 :])


def _shaped(found: Gradients, shapes: tuple[torch.Size, ...]) -> Gradients:
    """Return every gradient contiguous and in the shape of what it belongs to."""
    d_x, d_U, d_Sigma, d_Vh, d_bias = (
        None if t is None else t.contiguous().view(shape)
        for t, shape in zip(found, shapes, strict=True)
    )
    return d_x, d_U, d_Sigma, d_Vh, d_bias


def _stacked(t: Tensor, U: Tensor) -> Tensor:
    """Return t with one batch dimension, B = 1 and all rows together where factors are shared."""
    if U.dim() == 2:
        return t.flatten(0, -2).unsqueeze(0)
    return t.flatten(0, -3)


def _planes(x: Tensor, numbers: int, *, split: bool) -> Tensor:
    """Return memory for a and d: high and low of 16 bits, or float32."""
    dtype, count = (x.dtype, 2 * numbers) if split else (torch.float32, numbers)
    return torch.empty(count, dtype=dtype, device=x.device)


def _sizes(xs: Tensor, us: Tensor) -> dict[str, int]:
    return {"P": xs.shape[1], "M": us.shape[1], "N": xs.shape[2], "K": us.shape[2]}


def _strides(names: str, t: Tensor) -> dict[str, int]:
    """Return {"stride_xb": ..., "stride_xp": ..., "stride_xn": ...} for names "xpn"."""
    axes = ("b", names[1], names[2])
    return {f"stride_{names[0]}{axis}": t.stride(i) for i, axis in enumerate(axes)}
