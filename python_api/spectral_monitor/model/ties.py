"""Parameters that are one and the same under several names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from spectral_monitor.model.matrices import Parameter, ParameterInfo
    from spectral_monitor.model.matrix import Kept

__all__ = ["group_tied", "same_memory"]


def group_tied(
    parameters: Sequence[Parameter],
) -> list[tuple[ParameterInfo, Callable[[], Kept | None], tuple[str, ...]]]:
    """Each parameter once, under the first of its names, with its getter and its other names.

    Tied is what has the same values in the same order in the same memory. That is so of what a
    module shares, and of the tensors that a state dict has in its place; parts of one buffer, and
    a weight and its transpose, are different matrices.
    """
    first: dict[Hashable, int] = {}
    groups: list[tuple[ParameterInfo, Callable[[], Kept | None], list[str]]] = []
    for info, get in parameters:
        known = first.setdefault(_key(info), len(groups))
        if known == len(groups):
            groups.append((info, get, []))
        elif info.name != groups[known][0].name and info.name not in groups[known][2]:
            groups[known][2].append(info.name)
    return [(info, get, tuple(names)) for info, get, names in groups]


def _key(info: ParameterInfo) -> Hashable:
    # Factors are tied where all three are, and a computed weight where its parameter is.
    if info.factors is not None:
        return tuple(map(_memory, info.factors))
    if info.origin is not None and info.form == "effective":
        return (info.made_by, _memory(info.origin))
    return _memory(info.tensor)


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are tied, see `group_tied`."""
    return a is b or _memory(a) == _memory(b)


def _memory(tensor: Tensor) -> Hashable:
    """What tells two tensors apart: where they lie and how, or who they are."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return id(tensor)
    address = tensor.data_ptr() if tensor.numel() else 0
    if address == 0:
        return id(tensor)
    bits = tensor.is_neg(), tensor.is_conj()
    return (tensor.device, tensor.dtype, address, tensor.shape, tensor.stride(), bits)
