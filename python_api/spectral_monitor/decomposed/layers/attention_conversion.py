"""Between the packed weights of ``nn.MultiheadAttention`` and one decomposed layer for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from spectral_monitor.decomposed.layers.layer import uninitialised
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.decomposed.layers.ranks import Rank
from torch import Tensor, nn

__all__ = ["OPTIONS", "decomposed_projections", "dense_attention"]

# What nn.MultiheadAttention keeps of its arguments.
OPTIONS = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")


def decomposed_projections(layer: nn.MultiheadAttention, rank: Rank) -> dict[str, DecomposedLinear]:
    """Return the decompositions of all projections: in_proj, or q_proj, k_proj and v_proj where
    keys or values have sizes of their own, and out_proj.
    """
    names = ["in_proj"] if layer._qkv_same_embed_dim else ["q_proj", "k_proj", "v_proj"]
    bias = layer.in_proj_bias
    biases = [None] * len(names) if bias is None else bias.chunk(len(names))
    found = {
        name: DecomposedLinear.from_linear(_linear(layer.get_parameter(f"{name}_weight"), b), rank)
        for name, b in zip(names, biases, strict=True)
    }
    return {**found, "out_proj": DecomposedLinear.from_linear(layer.out_proj, rank)}


def dense_attention(
    options: Mapping[str, Any], parameters: Mapping[str, Tensor | None], training: bool
) -> nn.MultiheadAttention:
    """Return an ``nn.MultiheadAttention`` with copies of ``parameters``, by its own names."""
    like = parameters["out_proj.weight"]
    assert like is not None
    made = uninitialised(
        nn.MultiheadAttention,
        like=like,
        bias=parameters["in_proj_bias"] is not None,
        add_bias_kv=parameters["bias_k"] is not None,
        **options,
    )
    with torch.no_grad():
        for name, source in parameters.items():
            if source is not None:
                made.get_parameter(name).copy_(source).requires_grad_(source.requires_grad)
    return made.train(training)


def _linear(weight: nn.Parameter, bias: Tensor | None) -> nn.Linear:
    """Return a layer that shares these values: what ``from_linear`` decomposes."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return layer
