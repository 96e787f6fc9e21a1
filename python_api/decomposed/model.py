"""Layers of a model, replaced in place by their decomposed forms."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import nn

from python_api.decomposed.embedding import DecomposedEmbedding
from python_api.decomposed.linear import DecomposedLinear
from python_api.decomposed.ranks import Rank
from python_api.globs import matches

__all__ = ["decompose_model"]


def decompose_model(model: nn.Module, ranks: Mapping[str, Rank]) -> nn.Module:
    """Replace layers of ``model`` by their decompositions, in place, and return it.

    Args:
        model: holds ``nn.Linear`` and ``nn.Embedding`` layers.
        ranks: patterns (``*`` and ``?``) on module names to ranks, as ``resolve_rank`` reads
            them; the first that fits a name decides.

    Raises:
        ValueError: a pattern that fits no layer that can be decomposed; a weight that two layers
            share; what the layers refuse.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if name and isinstance(module, (nn.Linear, nn.Embedding))
    }
    for pattern in ranks:
        if not any(matches(name, pattern) for name in layers):
            near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.4) or list(layers)[:8]
            raise ValueError(
                f"the pattern {pattern!r} fits no layer that can be decomposed; "
                f"names: {', '.join(near) or 'none'}"
            )
    chosen = {
        name: next(rank for pattern, rank in ranks.items() if matches(name, pattern))
        for name in layers
        if any(matches(name, pattern) for pattern in ranks)
    }
    _check_untied(layers, chosen)
    made = {name: _decomposed(layers[name], rank) for name, rank in chosen.items()}
    for name, layer in made.items():
        model.set_submodule(name, layer)
    return model


def _decomposed(layer: nn.Module, rank: Rank) -> nn.Module:
    if isinstance(layer, nn.Embedding):
        return DecomposedEmbedding.from_embedding(layer, rank)
    assert isinstance(layer, nn.Linear)
    return DecomposedLinear.from_linear(layer, rank)


def _check_untied(layers: Mapping[str, nn.Module], chosen: Mapping[str, Rank]) -> None:
    for name in chosen:
        for other, layer in layers.items():
            if other != name and layer.weight is layers[name].weight:
                raise ValueError(f"{name} and {other} share one weight; expected untied layers")
