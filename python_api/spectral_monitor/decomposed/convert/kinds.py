"""The dense modules that have a decomposed form, and which part of one is which of the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

# Types of dense modules -> how one is decomposed.
_FORMS: dict[type[nn.Module], Callable[[Any, Rank], nn.Module]] = {
    nn.Linear: DecomposedLinear.from_linear,
    nn.Embedding: DecomposedEmbedding.from_embedding,
    nn.Conv1d: DecomposedConv1d.from_conv,
    nn.Conv2d: DecomposedConv2d.from_conv,
    nn.Conv3d: DecomposedConv3d.from_conv,
    nn.MultiheadAttention: DecomposedMultiheadAttention.from_attention,
}

_Attention = (nn.MultiheadAttention, DecomposedMultiheadAttention)


def dense_type(module: nn.Module) -> type[nn.Module] | None:
    """The type with a decomposed form that a dense module is of, subclasses included, or None."""
    return next((dense for dense in _FORMS if isinstance(module, dense)), None)


def decomposed(module: nn.Module, rank: Rank) -> nn.Module:
    """The decomposed form of a dense module that has one, with biases of its own."""
    dense = dense_type(module)
    assert dense is not None
    return _FORMS[dense](module, rank)


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
