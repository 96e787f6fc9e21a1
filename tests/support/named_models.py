"""Models that are nothing but layers with names."""

from __future__ import annotations

from torch import nn


class Named(nn.Module):
    """Layers as attributes, in the order given."""

    def __init__(self, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def linear(outputs: int, inputs: int) -> nn.Linear:
    """A layer by the shape of its weight."""
    return nn.Linear(inputs, outputs, bias=False)


def attention(width: int = 4, **extra: nn.Module) -> Named:
    """Square projections q, k, v and o, by the names that most models have."""
    layers = Named(**{f"{role}_proj": linear(width, width) for role in "qkvo"}, **extra)
    layers.num_heads = 2
    return layers
