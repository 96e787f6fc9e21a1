"""Arrays: torch, NumPy and CuPy arrays in, results of the same kind out, without copies.

Inside the library everything is a torch tensor. A list or tuple of matrices is a ragged batch:
it becomes a list of tensors, and the results come back as a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils import dlpack

from spectral_kernels.entry.readable import resolved
from spectral_kernels.runtime import forks

# A torch.Tensor, numpy.ndarray or cupy.ndarray. No static type covers the three without
# importing CuPy, so this alias documents rather than checks.
Array: TypeAlias = Any

# One result per matrix (a tensor or a tuple of tensors) -> what the caller gets.
Leave: TypeAlias = Callable[[Sequence[Any]], Any]

_NUMPY_FLOATS = frozenset(np.dtype(name) for name in ("float16", "float32", "float64"))


class _Unlocked:
    """A view of a read-only array that says it is writable.

    ``torch.from_numpy`` warns on read-only memory, and suppressing warnings is not thread-safe.
    Nothing in the library writes to its inputs, so the promise of the flag is kept.
    """

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self._owner = array


def kind(x: object) -> str:
    """Return "torch", "numpy" or "cupy"; "" for anything else."""
    if isinstance(x, Tensor):
        return "torch"
    if isinstance(x, np.ndarray):
        return "numpy"
    return "cupy" if type(x).__module__.partition(".")[0] == "cupy" else ""


def to_tensor(x: Array, name: str = "A", *, traced: bool = True) -> Tensor:
    """Return ``x`` as a tensor on the same device, sharing memory where that is possible.

    NumPy arrays with negative strides or foreign byte order are copied, and so are tensors that
    are negated or conjugated lazily.

    Args:
        x: the array.
        name: what messages call it.
        traced: see `readable.resolved`.

    Raises:
        TypeError: ``x`` is not a torch, NumPy or CuPy array, or is a NumPy array that is not
            float16, float32 or float64, or a tensor that keeps its values elsewhere.
        ValueError: a tensor without values.
    """
    which = kind(x)
    if which == "torch":
        return resolved(x, name, traced=traced)
    if which == "numpy":
        return _from_numpy(x, name)
    if which == "cupy":
        shared: Tensor = dlpack.from_dlpack(x)
        return shared
    raise TypeError(
        f"{name} is a {type(x).__module__}.{type(x).__qualname__}; expected a torch.Tensor, "
        "numpy.ndarray or cupy.ndarray, or a list or tuple of them"
    )


def _from_numpy(x: np.ndarray[Any, Any], name: str) -> Tensor:
    if x.dtype.newbyteorder("=") not in _NUMPY_FLOATS:
        raise TypeError(f"{name} has dtype {x.dtype}; expected float16, float32 or float64")
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    strides_fit = all(s >= 0 and s % x.itemsize == 0 for s in x.strides)
    if not strides_fit or not x.flags.aligned:
        x = x.copy()
    if not x.flags.writeable:
        x = np.asarray(_Unlocked(x))
    return torch.from_numpy(x)


def from_tensor(tensor: Tensor, like: str) -> Array:
    """Return ``tensor`` as an array of the kind ``like`` ("torch", "numpy" or "cupy")."""
    if like == "torch":
        return tensor
    if like == "numpy":
        return tensor.detach().numpy()
    import cupy

    return cupy.from_dlpack(tensor.detach())


def _convert(result: Any, like: str) -> Any:
    if isinstance(result, Tensor):
        return from_tensor(result, like)
    parts = [from_tensor(part, like) for part in result]
    return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)


def enter(
    x: Array | Sequence[Array], name: str = "A", *, traced: bool = True
) -> tuple[list[Tensor], Leave]:
    """Return the tensors of ``x`` and the function that turns results into the caller's kind.

    ``leave`` takes one result per tensor, a tensor or a (named) tuple of tensors. It returns a
    list where ``x`` is a list or tuple, and the single result otherwise. ``traced`` as of
    `to_tensor`.

    Raises:
        TypeError: an element is not an array, or one as of `to_tensor`; the message names it.
            ``x`` is a named tuple, whose fields are parts of one thing and no batch.
        ValueError: as of `to_tensor`.
    """
    forks.note_use()
    if not isinstance(x, (list, tuple)):
        like = kind(x)
        tensor = to_tensor(x, name, traced=traced)
        if like == "torch":
            return [tensor], lambda results: results[0]
        return [tensor], lambda results: _convert(results[0], like)
    if hasattr(x, "_fields"):
        raise TypeError(
            f"{name} is a {type(x).__qualname__} of {', '.join(x._fields)}; expected an array, or "
            "a list or tuple of arrays (the parts of one matrix are no batch)"
        )
    tensors = [to_tensor(item, f"{name}[{i}]", traced=traced) for i, item in enumerate(x)]
    if all(isinstance(item, Tensor) for item in x):
        return tensors, list
    likes = [kind(item) for item in x]
    return tensors, lambda results: [
        _convert(r, like) for r, like in zip(results, likes, strict=True)
    ]


def enter_together(
    *, traced: bool = True, **arguments: Array | Sequence[Array]
) -> tuple[list[list[Tensor]], Leave]:
    """Enter several arguments that belong together, each a matrix or each a list of them.

    Returns one list of tensors per argument, in order, all of one length. ``traced`` as of
    `to_tensor`.

    Raises:
        ValueError: one is a list and another is not, lengths differ, or kinds differ.
    """
    names = list(arguments)
    lengths = [len(a) if isinstance(a, (list, tuple)) else None for a in arguments.values()]
    if len(set(lengths)) > 1:
        listed = ", ".join(
            f"{name} {'one array' if length is None else f'a list of {length}'}"
            for name, length in zip(names, lengths, strict=True)
        )
        raise ValueError(f"arguments that belong together do not match: {listed}")
    kinds = [
        [kind(item) for item in a] if isinstance(a, (list, tuple)) else [kind(a)]
        for a in arguments.values()
    ]
    for i, entry in enumerate(zip(*kinds, strict=True)):
        if len(set(entry)) > 1 and "" not in entry:
            listed = ", ".join(f"{name} {k}" for name, k in zip(names, entry, strict=True))
            raise ValueError(f"arrays of different kinds in entry {i}: {listed}; expected one kind")
    entered = [enter(a, name, traced=traced) for name, a in arguments.items()]
    return [tensors for tensors, _ in entered], entered[0][1]
