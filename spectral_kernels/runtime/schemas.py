"""The operators of ``torch.ops.spectral_kernels``: schemas, fake kernels, registration.

Every operator takes a list of tensors, which may differ in shape; one matrix is a list of one.
Schemas are given to ``torch.library.Library`` rather than to ``torch.library.custom_op``: the
same call costs 3 microseconds instead of 8 (torch 2.13, without gradients).

Left vectors lie by columns in memory (U.mT is contiguous), right ones by rows: a triplet's vectors
are contiguous, which is how solvers make them and how alignments read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.runtime.numerics import autocast_dtype, autocast_off, result_dtype
from spectral_kernels.runtime.torch_internals import below_autograd, transformed

# torch.library carries no annotations.
_library: Any = torch.library
_LIBRARY = _library.Library("spectral_kernels", "DEF")

SCHEMAS = {
    "svd": "(Tensor[] A) -> (Tensor[] U, Tensor[] S, Tensor[] Vh)",
    "svdvals": "(Tensor[] A) -> Tensor[]",
    "rsvd": "(Tensor[] A, Tensor[] start, int[] k, int[] width, Tensor seed, int power_iters) "
    "-> (Tensor[] U, Tensor[] S, Tensor[] Vh)",
    "svdvals_with_tables": "(Tensor[] A, float rtol) -> (Tensor[] S, Tensor[] tables)",
    "summarize": "(Tensor[] S, int[] m, int[] n, float rtol) -> Tensor[]",
    "alignment_diagonals": "(Tensor[] U, Tensor[] Vh_next, int k) -> Tensor[]",
    "cluster_cosines": "(Tensor[] U, Tensor[] Vh_next, Tensor[] first) "
    "-> (Tensor[] diagonals, Tensor[] cosines)",
    "snapshot": "(Tensor[] A) -> (Tensor[] matrices, Tensor statistics)",
    "usv_matmul": "(Tensor x, Tensor U, Tensor Sigma, Tensor Vh, Tensor? bias) -> Tensor",
    "usv_backward": "(Tensor grad, Tensor x, Tensor U, Tensor Sigma, Tensor Vh, bool[] needed) "
    "-> Tensor[]",
}

for _name, _schema in SCHEMAS.items():
    _LIBRARY.define(_name + _schema)


def operator(name: str) -> Callable[..., Any]:
    """Return ``torch.ops.spectral_kernels.<name>.default``."""
    overload: Callable[..., Any] = getattr(torch.ops.spectral_kernels, name).default
    return overload


def implement(name: str, function: Callable[..., Any]) -> None:
    """Register the kernel of an operator; inside, ``dispatch`` picks the backend."""
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, function, device)


def differentiate(name: str, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    """Register the gradient of an operator."""
    _library.register_autograd(
        f"spectral_kernels::{name}", backward, setup_context=setup, lib=_LIBRARY
    )


def differentiate_with(name: str, function: Any, formula: Callable[..., Any]) -> None:
    """Register the gradient of an operator: a ``torch.autograd.Function`` that calls it.

    What ``register_autograd`` makes of the same two functions reads the schema anew in each call,
    which takes longer than a small product. The operator must take no lists of tensors.

    Args:
        name: the operator.
        function: its gradient in reverse mode.
        formula: the same in operations of torch, for forward mode and ``torch.func``: below
            autograd a tangent would be lost, and the derivative silently be zero.
    """
    overload = operator(name)

    def kernel(*arguments: Any) -> Any:
        if transformed():
            return formula(*arguments)
        if torch.is_grad_enabled() and any(
            isinstance(a, Tensor) and a.requires_grad for a in arguments
        ):
            return function.apply(*arguments)
        with torch.no_grad(), below_autograd():
            return overload(*arguments)

    _LIBRARY.impl(name, kernel, "Autograd")


def not_differentiable(name: str, advice: str) -> None:
    """Declare that an operator has no gradient: asking for one is an error that says so.

    A detached output would be worse: a loss with a second, differentiable term would train
    without the first, silently.
    """

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"spectral_kernels.{name} is declared non-differentiable; {advice}")

    differentiate(name, backward, lambda ctx, inputs, output: None)


def autocast(name: str, *, cast: bool) -> None:
    """Register what ``torch.autocast`` means to an operator.

    Args:
        name: the operator.
        cast: whether it takes its tensors cast, as ``F.linear`` does, and gives gradients back in
            the dtypes that were given; or as they are. Either way autocast is off inside, where
            it would cast what is float32 for accuracy. (``torch.library.register_autocast`` casts
            to one dtype, whatever the context asks for.)
    """
    function = operator(name)

    def on(device: str) -> Callable[..., Any]:
        def kernel(*arguments: Any) -> Any:
            if cast:
                arguments = tuple(
                    a.to(autocast_dtype(a)) if isinstance(a, Tensor) else a for a in arguments
                )
            with autocast_off(device):
                return function(*arguments)

        return kernel

    for device in ("cpu", "cuda"):
        _LIBRARY.impl(name, on(device), f"Autocast{device.upper()}")


def _new(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=result_dtype(like.dtype))


def new_triplets(A: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory of k triplets of ``A`` (..., m, n): U (..., m, k), S (..., k), Vh (..., k, n).

    In the dtype and the layout of results.
    """
    *batch, m, n = A.shape
    return _new(A, *batch, k, m).mT, _new(A, *batch, k), _new(A, *batch, k, n)


def _triplets_fake(
    A: list[Tensor], ks: list[int]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    triplets = [new_triplets(a, k) for a, k in zip(A, ks, strict=True)]
    return [U for U, _, _ in triplets], [S for _, S, _ in triplets], [Vh for _, _, Vh in triplets]


def _svd_fake(A: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return _triplets_fake(A, [min(a.shape[-2:]) for a in A])


def _svdvals_fake(A: list[Tensor]) -> list[Tensor]:
    return [_new(a, *a.shape[:-2], min(a.shape[-2:])) for a in A]


def _svdvals_with_tables_fake(A: list[Tensor], rtol: float) -> tuple[list[Tensor], list[Tensor]]:
    tables = [a.new_empty((*a.shape[:-2], 7), dtype=torch.float64) for a in A]
    return _svdvals_fake(A), tables


def _rsvd_fake(
    A: list[Tensor],
    start: list[Tensor],
    k: list[int],
    width: list[int],
    seed: Tensor,
    power_iters: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return _triplets_fake(A, k)


def _summarize_fake(S: list[Tensor], m: list[int], n: list[int], rtol: float) -> list[Tensor]:
    return [s.new_empty((*s.shape[:-1], 7), dtype=torch.float64) for s in S]


def _alignment_diagonals_fake(U: list[Tensor], Vh_next: list[Tensor], k: int) -> list[Tensor]:
    return [
        u.new_empty((*u.shape[:-2], min(k, u.shape[-1], v.shape[-2])))
        for u, v in zip(U, Vh_next, strict=True)
    ]


def _cluster_cosines_fake(
    U: list[Tensor], Vh_next: list[Tensor], first: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    diagonals = [u.new_empty(f.shape) for u, f in zip(U, first, strict=True)]
    return diagonals, [torch.empty_like(x) for x in diagonals]


def _snapshot_fake(A: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    count = sum(a.shape[:-2].numel() for a in A)
    device = A[0].device if A else None
    statistics = torch.empty((count, 3), dtype=torch.float64, device=device)
    return [_new(a, *a.shape) for a in A], statistics


def _usv_matmul_fake(
    x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, bias: Tensor | None
) -> Tensor:
    return x.new_empty((*x.shape[:-1], U.shape[-2]))


def _usv_backward_fake(
    grad: Tensor, x: Tensor, U: Tensor, Sigma: Tensor, Vh: Tensor, needed: list[bool]
) -> list[Tensor]:
    shapes = (x.shape, U.shape, Sigma.shape, Vh.shape, U.shape[:-1])
    return [x.new_empty(shape) for shape, wanted in zip(shapes, needed, strict=True) if wanted]


_FAKES: dict[str, Callable[..., Any]] = {
    "svd": _svd_fake,
    "svdvals": _svdvals_fake,
    "svdvals_with_tables": _svdvals_with_tables_fake,
    "rsvd": _rsvd_fake,
    "summarize": _summarize_fake,
    "alignment_diagonals": _alignment_diagonals_fake,
    "cluster_cosines": _cluster_cosines_fake,
    "snapshot": _snapshot_fake,
    "usv_matmul": _usv_matmul_fake,
    "usv_backward": _usv_backward_fake,
}

for _name, _fake in _FAKES.items():
    _library.register_fake(f"spectral_kernels::{_name}", _fake, lib=_LIBRARY)
