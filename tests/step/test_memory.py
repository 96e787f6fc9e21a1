"""What a monitor keeps of a Transformer between steps, as a multiple of the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import nn

from tests.support.monitored import due, held_bytes


class Layers(nn.Module):
    """Linear layers without biases, called and sized as told."""

    def __init__(self, **sizes: tuple[int, int]) -> None:
        super().__init__()
        for name, size in sizes.items():
            setattr(self, name, nn.Linear(*size, bias=False))


def transformer(layers: int = 2, d: int = 512) -> nn.Module:
    """The shapes of a Transformer's blocks, short sides above those that are tracked whole."""

    def block() -> nn.Module:
        square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (d, d))
        found = nn.Module()
        found.attn, found.mlp = Layers(**square), Layers(up=(d, 4 * d), down=(4 * d, d))
        return found

    return nn.Sequential(*(block() for _ in range(layers)))


# Held with d = 512: 1.17, 1.17 and 0.64 times the weights, of which the heads 0.4, less with
# d = 768 as vectors grow with d and weights with d^2. Without vectors, the values: 0.003.
@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 3.0),
        ({"reference": "previous"}, 3.0),
        ({"k": 32}, 1.2),
        ({"pairs": None, "reference": None}, 0.01),
    ],
    ids=["all values", "previous", "k = 32", "values alone"],
)
def test_what_a_large_model_costs(options: dict[str, Any], limit: float) -> None:
    torch.manual_seed(0)
    model = transformer().requires_grad_(False)
    weights = sum(p.nbytes for p in model.parameters())
    watch = SpectralMonitor(model, heads=8, every=1, **options)
    assert watch.pairs or "pairs" in options
    told = watch.memory()
    assert sum(told.weights.values()) == weights
    for _ in range(3):
        for p in model.parameters():
            p.add_(1e-4 * torch.randn(p.shape))
        due(watch.step())
    watch._frame = None
    held = held_bytes(watch, {p.untyped_storage().data_ptr() for p in model.parameters()})
    # A few numbers for each value come on top: bounds, summaries, clusters.
    assert told.total <= held <= 1.05 * told.total + 0.005 * weights
    assert held <= limit * weights
    assert watch.memory().total == told.total
