"""The dense modules that have a decomposed form, and which part of one is which of the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
from spectral_monitor.decomposed.layers.conv import (
    DecomposedConv1d,
    DecomposedConv2d,
    DecomposedConv3d,
)
from spectral_monitor.decomposed.layers.embedding import DecomposedEmbedding
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.decomposed.layers.ranks import Rank
from torch import nn

__all__ = [
    "Kind",
    "biases_of",
    "is_attention",
    "kind_of",
    "layers_of",
    "move_parameters",
    "weights_of",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of dense modules and how one is decomposed."""

    dense: type[nn.Module]
    decompose: Callable[[Any, Rank], nn.Module]


_KINDS = (
    Kind(nn.Linear, DecomposedLinear.from_linear),
    Kind(nn.Embedding, DecomposedEmbedding.from_embedding),
    Kind(nn.Conv1d, DecomposedConv1d.from_conv),
    Kind(nn.Conv2d, DecomposedConv2d.from_conv),
    Kind(nn.Conv3d, DecomposedConv3d.from_conv),
    Kind(nn.MultiheadAttention, DecomposedMultiheadAttention.from_attention),
)

_Attention = (nn.MultiheadAttention, DecomposedMultiheadAttention)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a dense module, subclasses included, or None."""
    return next((kind for kind in _KINDS if isinstance(module, kind.dense)), None)


def layers_of(module: nn.Module) -> dict[str, DecomposedLayer]:
    """Path inside a decomposed module -> layer with factors; ``""`` for the module itself."""
    if isinstance(module, DecomposedMultiheadAttention):
        return {n: x for n, x in module.named_children() if isinstance(x, DecomposedLayer)}
    return {"": module} if isinstance(module, DecomposedLayer) else {}


def weights_of(module: nn.Module) -> dict[str, str]:
    """Path of a layer as in `layers_of` -> path of its weight in the dense module."""
    if not isinstance(module, _Attention):
        return {"": "weight"}
    names = ("in_proj",) if module._qkv_same_embed_dim else ("q_proj", "k_proj", "v_proj")
    return {**{name: f"{name}_weight" for name in names}, "out_proj": "out_proj.weight"}


def biases_of(module: nn.Module) -> dict[str, str]:
    """Path of a bias in the dense module -> its path in the decomposed one.

    Without those that are in parts there: three projections have a third of a bias each.
    """
    if not isinstance(module, _Attention):
        return {"bias": "bias"}
    whole = {name: name for name in ("out_proj.bias", "bias_k", "bias_v")}
    return {**whole, "in_proj_bias": "in_proj.bias"} if module._qkv_same_embed_dim else whole


def is_attention(module: nn.Module) -> bool:
    """Whether a module is taken as a whole, with the layers in it."""
    return isinstance(module, _Attention)


def move_parameters(source: nn.Module, target: nn.Module, paths: Mapping[str, str]) -> None:
    """Make parameters of ``source`` those of ``target``, where ``source`` has them."""
    present = dict(source.named_parameters(remove_duplicate=False))
    for old, new in paths.items():
        if old in present:
            owner, _, leaf = new.rpartition(".")
            setattr(target.get_submodule(owner), leaf, present[old])
