"""Names of torch that are not public, for what it has no public names for: all stand here."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Documented, in a module that is not public. Traces of models are such a mode.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

_C: Any = torch._C
_forward_ad: Any = forward_ad


def transformed() -> bool:
    """Return whether ``torch.func`` or forward-mode differentiation is at work."""
    active: bool = _C._are_functorch_transforms_active()
    return active or _forward_ad._current_level >= 0


def below_autograd() -> Any:
    """Return a context in which operators run their kernels, not their gradients' registration."""
    return _C._AutoDispatchBelowAutograd()


def is_batch_of_gradients(grad: Tensor) -> bool:
    """Return whether ``grad`` stands for many, as ``is_grads_batched=True`` hands them on."""
    batched: bool = _C._functorch.is_legacy_batchedtensor(grad)
    return batched


def is_transformed(x: Tensor) -> bool:
    """Return whether ``x`` is a tensor inside ``torch.func``, which has no values of its own."""
    wrapped: bool = _C._functorch.is_functorch_wrapped_tensor(x)
    functional: bool = torch._is_functional_tensor(x)
    return wrapped or functional


def has_python_code(x: Tensor) -> bool:
    """Return whether a subclass has Python code of its own for what operations do."""
    dispatched: bool = _C._dispatch_keys(x).has(_C.DispatchKey.Python)
    return dispatched


def is_zero_without_memory(x: Tensor) -> bool:
    """Return whether ``x`` is a tangent of zero, for which autograd allocates nothing."""
    zero: bool = x._is_zerotensor()
    return zero


def has_onednn_product() -> bool:
    """Return whether this torch has `onednn_product`."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return a b + bias of two matrices by oneDNN, without a gradient."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.mT, bias, "none", [], "")
    return product


def release_pool(device: torch.device, pool: Any) -> None:
    """Have torch's allocator know that a capture ended which CUDA refused to end.

    Does nothing where the allocator knows already, as after an error of the work itself.
    """
    with contextlib.suppress(Exception):
        _C._cuda_endAllocateToPool(device.index, pool)
        _C._cuda_releasePool(device.index, pool)
