"""Attentions with decomposed projections beside the dense ones they are of."""

from __future__ import annotations

import copy
from collections import Counter

from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

D, HEADS, N, L, S = 8, 4, 3, 5, 6


def decomposed(model: nn.TransformerEncoder) -> nn.TransformerEncoder:
    model = copy.deepcopy(model)
    for block in model.layers:
        block.self_attn = DecomposedMultiheadAttention.from_attention(block.self_attn)
        block.linear1 = DecomposedLinear.from_linear(block.linear1)
        block.linear2 = DecomposedLinear.from_linear(block.linear2)
    return model


class Operations(TorchDispatchMode):
    """Counts operations by name and keeps the shapes of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names[func._schema.name] += 1
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.shapes.add(tuple(t.shape))
        return out
