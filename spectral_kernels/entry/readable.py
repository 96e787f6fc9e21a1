"""Whether a tensor's values lie at its address, which is where kernels read them.

A tensor may keep them elsewhere (a DTensor on other ranks, a quantised subclass in packed parts),
keep something else there (a lazily negated view has the values before their signs change), or have
freed its memory. Read at its address, such a tensor gives wrong numbers or ends the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.checks import check_dtype
from spectral_kernels.runtime.torch_internals import (
    has_python_code,
    is_transformed,
    is_zero_without_memory,
)

# Subclasses may keep values elsewhere; of these two it is known that they do not.
_PLAIN = frozenset({Tensor, torch.nn.Parameter})

# Subclasses that say how to get the values, by name: their modules are not loaded for this.
_REMEDIES = {
    "DTensor": (
        "is a DTensor, whose values are shared out among ranks",
        "a plain tensor: call .full_tensor() on every rank, or .to_local() for this rank's part",
    ),
    "AsyncCollectiveTensor": (
        "is an AsyncCollectiveTensor, whose values are on their way from other ranks",
        "a plain tensor: call .wait()",
    ),
}
_TRACED = frozenset({"FakeTensor", "FunctionalTensor"})


class Unreadable(NamedTuple):
    """What a tensor is, as a phrase that follows its name, and what is expected in its place."""

    what: str
    expected: str
    error: type[TypeError] | type[ValueError]

    def __str__(self) -> str:
        return f"{self.what}; expected {self.expected}"


def is_readable(x: Tensor) -> bool:
    """Whether the values of ``x`` are at its address, the right ones, as far as its strides reach.

    About a microsecond: it is asked at every step.
    """
    if type(x) not in _PLAIN and _is_wrapper(x):
        return False
    # What is conjugated is complex, and refused for its dtype.
    if x.layout is not torch.strided or x.is_nested or x.is_neg():
        return False
    if not x.nbytes:
        return True
    try:
        return x.data_ptr() != 0 and x.untyped_storage().nbytes() >= _reach(x)
    except (RuntimeError, NotImplementedError):
        return False


def why_unreadable(x: Tensor) -> Unreadable | None:
    """What keeps ``x`` from being read; None where nothing does.

    A lazily negated or conjugated tensor can be read, by `resolved`.
    """
    if torch.nn.parameter.is_lazy(x):
        what = "is not initialised yet (lazy)"
        return Unreadable(what, "a parameter after its first forward pass", ValueError)
    if is_readable(x) or _is_lazy_view(x):
        return None
    return _problem(x)


def resolved(x: Tensor, name: str, *, traced: bool = False) -> Tensor:
    """``x``, or a copy where its values are known but not at its address.

    Args:
        x: any tensor.
        name: what messages call it.
        traced: let tensors pass that only operators know how to take: on the meta device, fake
            ones, and those inside ``torch.func`` and ``torch.compile``.

    Raises:
        TypeError: a kind of tensor that keeps its values elsewhere, such as a DTensor, a sparse or
            a nested one.
        ValueError: one without values: lazy, freed, or on the meta device.
    """
    if traced and torch.compiler.is_compiling():
        return x
    if is_readable(x) or (traced and _is_traced(x)):
        return x
    if not torch.nn.parameter.is_lazy(x) and _is_lazy_view(x):
        # As torch's own kernels do; the zero tensors of forward mode become ordinary ones.
        return x.clone() if is_zero_without_memory(x) else x.resolve_conj().resolve_neg()
    problem = why_unreadable(x)
    assert problem is not None
    raise problem.error(f"{name} {problem}")


def resolved_list(tensors: Sequence[Tensor], name: str = "A") -> list[Tensor]:
    """`resolved` of every tensor of a list, which kernels have a type for."""
    dense = [resolved(x, f"{name}[{i}]") for i, x in enumerate(tensors)]
    for i, x in enumerate(dense):
        check_dtype(x, f"{name}[{i}]")
    return dense


def _reach(x: Tensor) -> int:
    """How many bytes of the storage there must be for the last entry of ``x`` to exist."""
    first = int(x.storage_offset())
    if x.is_contiguous():
        return x.nbytes + (first * x.element_size() if first else 0)
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return (first + last + 1) * x.element_size()


def _is_wrapper(x: Tensor) -> bool:
    """Whether a subclass has Python code of its own for what operations do."""
    return has_python_code(x) or torch.nn.parameter.is_lazy(x)


def _is_lazy_view(x: Tensor) -> bool:
    dense = x.layout is torch.strided and not x.is_nested and not _is_wrapper(x)
    return (
        dense and not is_transformed(x) and (x.is_neg() or x.is_conj() or is_zero_without_memory(x))
    )


def _is_traced(x: Tensor) -> bool:
    if torch.nn.parameter.is_lazy(x):
        return False
    return x.device.type == "meta" or is_transformed(x) or bool(_TRACED & _names(x))


def _names(x: Tensor) -> set[str]:
    return {base.__name__ for base in type(x).__mro__}


def _problem(x: Tensor) -> Unreadable:
    """Why a tensor that has a shape cannot be read."""
    if x.is_nested:
        return Unreadable("is a nested tensor", "the list of its .unbind()", TypeError)
    kind = type(x).__name__
    for name in _names(x) & _REMEDIES.keys():
        return Unreadable(*_REMEDIES[name], TypeError)
    if _is_wrapper(x) and not _TRACED & _names(x):
        return Unreadable(
            f"is a {type(x).__module__}.{kind}, a tensor subclass that keeps its values elsewhere",
            "a plain tensor (of a quantised one .dequantize())",
            TypeError,
        )
    if x.layout is not torch.strided:
        return Unreadable(
            f"has layout {x.layout}", "a dense (strided) tensor: call .to_dense()", TypeError
        )
    if x.device.type == "meta":
        what = "is on the meta device and has no values"
        return Unreadable(what, "a tensor on a device that holds them", ValueError)
    if _TRACED & _names(x) or is_transformed(x):
        return Unreadable(
            f"is a {kind} inside torch.compile or torch.func, without values of its own",
            "a call outside of these",
            ValueError,
        )
    held, needed = x.untyped_storage().nbytes(), _reach(x)
    return Unreadable(
        f"has a storage of {held} bytes where its shape needs {needed}: its memory was freed, as "
        "FSDP does with parameters that are not in use",
        "a tensor with memory",
        ValueError,
    )
