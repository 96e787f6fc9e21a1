"""Matrices kept as U Sigma Vh: to decompose, to put together, to multiply with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, enter, enter_together, from_tensor, kind
from spectral_kernels.entry.factors import enter_factors, is_single, spread
from spectral_kernels.entry.results import Decomposed
from spectral_kernels.factored import torch_backend
from spectral_kernels.factored.gradients import UsvMatmul
from spectral_kernels.factored.matmul import sigma_times, times_sigma
from spectral_kernels.runtime import dispatch, schemas
from spectral_kernels.runtime.numerics import (
    DTYPE_CODES,
    autocast_dtype,
    autocast_off,
    result_dtype,
)
from spectral_kernels.svd.op import svd

_usv_matmul = schemas.operator("usv_matmul")


def decompose(
    A: Array | Sequence[Array], k: int | None = None, *, check_finite: bool = False
) -> Decomposed | list[Decomposed]:
    """Return A, or its best approximation of rank k, as U Sigma Vh with a dense Sigma.

    Args:
        A: (..., m, n) as for ``svd``; a list or tuple gives a list.
        k: how many triplets, 1 <= k <= min(m, n); all if None.
        check_finite: raise on NaN or Inf instead of returning NaN.

    Returns:
        ``Decomposed(U (..., m, k), Sigma (..., k, k), Vh (..., k, n))``. Sigma starts diagonal
        and is dense because training makes it so. Declared non-differentiable.

    Raises:
        TypeError: integer or complex dtype, k not an integer.
        ValueError: k out of range, fewer than two dimensions, mixed devices.

    Example:
        >>> U, Sigma, Vh = sk.decompose(np.diag([3.0, 2.0, 1.0]), 2)
        >>> U.shape, Vh.shape
        ((3, 2), (2, 3))
        >>> Sigma.round(6)
        array([[3., 0.],
               [0., 2.]])
    """
    tensors, leave = enter(A)
    checks.check_matrices(tensors)
    single = not isinstance(A, (list, tuple))
    if k is not None:
        for tensor, name in zip(tensors, checks.names("A", len(tensors), single), strict=True):
            checks.check_rank(k, tensor, name)
    if check_finite:
        checks.check_finite(tensors, "A", single=single)
    factors = svd(tensors)
    parts = [
        Decomposed(x.U[..., :k], torch.diag_embed(x.S[..., :k]), x.Vh[..., :k, :])
        for x in (factors if isinstance(factors, list) else [factors])
    ]
    result: Decomposed | list[Decomposed] = leave(parts)
    return result


def recompose(
    U: Array | Decomposed | Sequence[Array | Decomposed],
    Sigma: Array | Sequence[Array] | None = None,
    Vh: Array | Sequence[Array] | None = None,
    *,
    out: Array | None = None,
) -> Array | list[Array]:
    """Return U Sigma Vh (..., m, n).

    Args:
        U: (..., m, k), or a ``Decomposed`` in place of all three; a list or tuple of these gives a
            list.
        Sigma: (..., k, k), or (..., k) for a diagonal.
        Vh: (..., k, n).
        out: where to write the result, of its kind, device, dtype and shape, sharing no memory
            with the factors: a weight is recomposed in place, with min(m, n) k numbers on the way
            (and float32 copies of 16-bit factors). Not differentiable.

    Returns:
        U Sigma Vh, float64 for float64 and float32 otherwise, whatever ``torch.autocast`` says.
        Differentiable in all three, twice.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: shapes that do not chain, mixed devices or kinds, ``out`` that does not fit.

    Example:
        >>> A = np.random.default_rng(0).standard_normal((5, 3))
        >>> np.allclose(sk.recompose(*sk.decompose(A)), A)
        True
    """
    factors, leave = enter_factors(U, Sigma, Vh)
    if out is None:
        with autocast_off(factors[0].U.device.type if factors else "cpu"):
            sides = [_two_sides(*x) for x in factors]
            return leave([u @ v for u, v in sides])
    if not is_single(U):
        raise ValueError("out is given with a list of matrices; expected a single matrix")
    like = kind(U.U if isinstance(U, Decomposed) else U)
    with torch.no_grad(), autocast_off(factors[0].U.device.type):
        u, v = _two_sides(*factors[0])
        target = _out(out, like, u, (*u.shape[:-1], v.shape[-1]), u.dtype)
        torch.matmul(u, v, out=target)
    return out


def _two_sides(U: Tensor, Sigma: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices, k wide and k high, whose product is U Sigma Vh."""
    dtype = result_dtype(torch.promote_types(U.dtype, Vh.dtype))
    U, Sigma, Vh = U.to(dtype), Sigma.to(dtype), Vh.to(dtype)
    # Sigma goes to the side with fewer rows.
    if U.shape[-2] <= Vh.shape[-1]:
        return times_sigma(U, Sigma), Vh
    return U, sigma_times(Sigma, Vh)


def usv_matmul(
    x: Array,
    U: Array | Decomposed,
    Sigma: Array | None = None,
    Vh: Array | None = None,
    bias: Array | None = None,
    *,
    out: Array | None = None,
) -> Array:
    """Return x @ (U Sigma Vh)^T + bias, without forming the (m, n) matrix.

    Args:
        x: (..., n) where the factors have no batch dimension; (*batch, p, n) where they have.
        U: (*batch, m, k), or a ``Decomposed`` in place of all three.
        Sigma: (*batch, k, k), or (*batch, k) for a diagonal.
        Vh: (*batch, k, n).
        bias: (*batch, m) or None.
        out: where to write the result, of its shape and dtype; not differentiable.

    Returns:
        (..., m) in the dtype of x, as ``torch.nn.functional.linear``; float16 and bfloat16 are
        multiplied in float32 and rounded once. Differentiable in x, U, Sigma, Vh and bias, twice,
        in forward mode and by ``torch.func`` too.
        Under ``torch.autocast`` arguments are cast as those of ``linear`` are: to its dtype, which
        the result then has, but for float64; not with ``out``.

        Memory, for p rows and e bytes a number: autograd keeps x, U, Sigma and Vh, no byte beyond
        these arguments (under autocast, beyond their casts). A dense layer keeps x and W; three
        calls of ``linear`` keep 2 p k e bytes more, what is k wide between them, which here is
        recomputed: p k n multiplications. Beside arguments and results the forward pass holds
        k (2 p + min(m, n)) numbers at its peak, the backward pass k (2 p + m + n); on a CPU both
        hold float32 copies of 16-bit arguments, and what the library that multiplies takes for
        itself, at most some 100,000 numbers. Nothing is ever m x n.

        With every gradient needed, forward and backward have 2 p k (3 m + 4 n) operations, and 8 of
        k^2 times p, m or n, whichever is least (see ``folding``); a dense layer has 6 p m n.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: dtypes differ (after autocast), shapes that do not chain, mixed devices or
            kinds.
        RuntimeError: ``out`` together with an argument that requires a gradient.

    Example:
        >>> x, A = torch.ones(2, 3), torch.arange(12.0).reshape(4, 3)
        >>> torch.allclose(sk.usv_matmul(x, *sk.decompose(A)), x @ A.mT, atol=1e-4)
        True
    """
    if Vh is None:
        U, Sigma, Vh = spread(U, Sigma, Vh)
    # Looking closely takes as long as a small product.
    if out is None and _plainly_fit(x, U, Sigma, Vh, bias):
        return _usv_matmul(x, U, Sigma, Vh, bias)
    return _entered_product(x, U, Sigma, Vh, bias, out)


def break_even_rank(m: int, n: int) -> int:
    """Return the largest k for which U, Sigma and Vh have no more entries than A (m, n).

    The largest k with k^2 + (m + n) k <= m n. (Eq. 5 of "Decomposed Learning" prints the
    discriminant with the sign of 4 m n wrong.) 0 where not even one triplet fits.

    Raises:
        TypeError: m or n not an integer.
        ValueError: m or n below 0.

    Example:
        >>> sk.break_even_rank(512, 512)
        212
    """
    checks.check_count(m, "m", 0)
    checks.check_count(n, "n", 0)
    s = m + n
    # floor((isqrt(D) - s) / 2) is exact: the condition is (2k + s)^2 <= D = s^2 + 4 m n.
    return (math.isqrt(s * s + 4 * m * n) - s) // 2


def _entered_product(
    x: Array, U: Array, Sigma: Array, Vh: Array, bias: Array | None, out: Array | None
) -> Array:
    """Return ``usv_matmul`` of arrays of any kind, checked."""
    arguments = {"x": x, "U": U, "Sigma": Sigma, "Vh": Vh}
    if bias is not None:
        arguments["bias"] = bias
    entered, leave = enter_together(**arguments)
    tensors = {name: t[0] for name, t in zip(arguments, entered, strict=True)}
    _check_product(tensors, autocast=out is None)
    xt, b = tensors["x"], tensors.get("bias")
    # torch's operators want a row dimension; a single vector is one row.
    rows = xt.unsqueeze(0) if xt.dim() == 1 else xt
    if out is None:
        y = _usv_matmul(rows, tensors["U"], tensors["Sigma"], tensors["Vh"], b)
        return leave([y.squeeze(0) if xt.dim() == 1 else y])
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors.values()):
        raise RuntimeError("usv_matmul with out= is not differentiable; use it under no_grad")
    target = _out(out, kind(x), xt, (*xt.shape[:-1], tensors["U"].shape[-2]), xt.dtype)
    rows_out = target.unsqueeze(0) if xt.dim() == 1 else target
    with torch.no_grad(), autocast_off(xt.device.type):
        _kernel(rows, tensors["U"], tensors["Sigma"], tensors["Vh"], b, rows_out)
    return out


def _plainly_fit(x: Array, U: Array, Sigma: Array, Vh: Array, bias: Array | None) -> bool:
    """Whether the arguments are as in most training steps: tensors of one kind, no batch."""
    if not (isinstance(x, Tensor) and isinstance(U, Tensor) and x.dim() > 1 and U.dim() == 2):
        return False
    dtype, device = x.dtype, x.device
    for t in (x, U, Sigma, Vh) if bias is None else (x, U, Sigma, Vh, bias):
        alike = isinstance(t, Tensor) and t.dtype == dtype and t.device == device
        if not alike or t.layout != torch.strided:
            return False
    (m, k), n = U.shape, x.shape[-1]
    return (
        dtype in DTYPE_CODES
        and Vh.shape == (k, n)
        and Sigma.shape in ((k, k), (k,))
        and (bias is None or bias.shape == (m,))
    )


def _check_product(tensors: dict[str, Tensor], *, autocast: bool) -> None:
    x, U, Vh, bias = tensors["x"], tensors["U"], tensors["Vh"], tensors.get("bias")
    checks.check_factors(U, tensors["Sigma"], Vh)
    for name in ("x", "bias"):
        if name in tensors:
            checks.check_dtype(tensors[name], name)
    checks.check_devices(**tensors)
    if len({autocast_dtype(t) if autocast else t.dtype for t in tensors.values()}) > 1:
        dtypes = ", ".join(f"{name} {t.dtype}" for name, t in tensors.items())
        raise ValueError(f"dtypes differ: {dtypes}; expected one")
    batch = U.shape[:-2]
    rows_fit = x.dim() >= 1 if not batch else x.dim() == U.dim() and x.shape[:-2] == batch
    if not rows_fit or x.shape[-1] != Vh.shape[-1]:
        wanted = f"(..., {Vh.shape[-1]})" if not batch else f"{(*batch, 'p', Vh.shape[-1])}"
        raise ValueError(
            f"shapes do not chain: x is {tuple(x.shape)} and Vh {tuple(Vh.shape)}; "
            f"expected x of shape {wanted}"
        )
    if bias is not None and list(bias.shape) != [*batch, U.shape[-2]]:
        raise ValueError(f"bias is {tuple(bias.shape)}; expected {(*batch, U.shape[-2])}")


def _out(
    out: Array, like: str, source: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return the tensor to write to. NumPy memory is shared, so ``out`` itself changes."""
    expected = f"{like} array of shape {shape}, dtype {dtype} on {source.device}"
    fits = kind(out) == like and tuple(out.shape) == shape
    if like == "numpy" and fits and not out.flags.writeable:
        raise ValueError(f"out is read-only; expected a writable {expected}")
    target = enter(out, "out")[0][0] if fits else None
    if target is None or target.dtype != dtype or target.device != source.device:
        raise ValueError(
            f"out is a {kind(out) or type(out).__name__} array of shape "
            f"{tuple(getattr(out, 'shape', ()))}, dtype {getattr(out, 'dtype', None)}; "
            f"expected a {expected}"
        )
    if like == "numpy" and not (from_tensor(target, like).ctypes.data == out.ctypes.data):
        raise ValueError(f"out has strides {out.strides}; expected positive strides")
    return target


def _kernel(
    x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    module: Any = dispatch.backend("factored", x.device.type)
    y: Tensor = module.usv_matmul(x, U, Sigma, Vh, bias, out)
    return y


schemas.implement("usv_matmul", _kernel)
schemas.differentiate_with("usv_matmul", UsvMatmul, torch_backend.usv_matmul)
schemas.autocast("usv_matmul", cast=True)
