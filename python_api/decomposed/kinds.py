"""The dense modules that have a decomposed form, and which part of one is which of the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from python_api.decomposed.embedding import DecomposedEmbedding
from python_api.decomposed.layer import DecomposedLayer
from python_api.decomposed.linear import DecomposedLinear
from python_api.decomposed.ranks import Rank

__all__ = ["Kind", "biases_of", "kind_of", "layers_of", "move_parameters", "weights_of"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of dense modules and how one is decomposed."""

    dense: type[nn.Module]
    decompose: Callable[[Any, Rank], nn.Module]


_KINDS = (
    Kind(nn.Linear, DecomposedLinear.from_linear),
    Kind(nn.Embedding, DecomposedEmbedding.from_embedding),
)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a dense module, subclasses included, or None."""
    return next((kind for kind in _KINDS if isinstance(module, kind.dense)), None)


def layers_of(module: nn.Module) -> dict[str, DecomposedLayer]:
    """Path inside a decomposed module -> layer with factors; ``""`` for the module itself."""
    return {"": module} if isinstance(module, DecomposedLayer) else {}


def weights_of(module: nn.Module) -> dict[str, str]:
    """Path of a layer as in `layers_of` -> path of its weight in the dense module."""
    return {"": "weight"}


def biases_of(module: nn.Module) -> dict[str, str]:
    """Path of a bias in the dense module -> its path in the decomposed one."""
    return {"bias": "bias"}


def move_parameters(source: nn.Module, target: nn.Module, paths: Mapping[str, str]) -> None:
    """Make parameters of ``source`` those of ``target``, where ``source`` has them."""
    present = dict(source.named_parameters(remove_duplicate=False))
    for old, new in paths.items():
        if old in present:
            owner, _, leaf = new.rpartition(".")
            setattr(target.get_submodule(owner), leaf, present[old])
