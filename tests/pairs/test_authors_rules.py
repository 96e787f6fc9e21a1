"""Alignments are those of the papers' code, on random and on trained weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import spectral_kernels as sk
from tests.support import authors_rules

Rule = Callable[..., np.ndarray]
HEADS = 4


class Transformer(nn.Module):
    """One block with fused queries, keys and values, as they train on modular addition."""

    def __init__(self, p: int = 11, d: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(p + 1, d)
        self.block = nn.TransformerEncoderLayer(d, HEADS, 4 * d, 0.0, batch_first=True)
        self.decoder = nn.Linear(d, p)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.block(self.embed(tokens))[:, -1])


class Speech(nn.Module):
    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, hidden, num_layers=3, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.lstm(x)[0])


class Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)


class UNet(nn.Module):
    """The layers of their network of added skips, at a smaller size."""

    def __init__(self, channels: tuple[int, ...] = (4, 6, 8, 10), embed: int = 7) -> None:
        super().__init__()
        down = (1, *channels)
        for i in range(1, 5):
            setattr(self, f"conv{i}", nn.Conv2d(down[i - 1], down[i], 3, bias=False))
            setattr(self, f"dense{i}", Dense(embed, down[i]))
        for i in range(4, 0, -1):
            setattr(self, f"tconv{i}", nn.ConvTranspose2d(down[i], down[i - 1], 3))


TRANSFORMER_PAIRS = {
    ("embed.weight", "block.self_attn.in_proj_weight"): ("", ""),
    ("block.self_attn.in_proj_weight", "block.self_attn.in_proj_weight"): ("[q]", "[k]"),
    ("block.self_attn.in_proj_weight", "block.self_attn.out_proj.weight"): ("[v]", ""),
    ("block.self_attn.out_proj.weight", "block.linear1.weight"): ("", ""),
    ("block.linear1.weight", "block.linear2.weight"): ("", ""),
    ("block.linear2.weight", "decoder.weight"): ("", ""),
}
UNET_PAIRS = [
    *(("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "conv4")),
    *(("dense1", "conv2"), ("dense2", "conv3"), ("dense3", "conv4"), ("dense4", "tconv4")),
    ("conv4", "tconv4"),
    *(("tconv4", "tconv3"), ("tconv3", "tconv2"), ("tconv2", "tconv1")),
    *(("conv1", "tconv1"), ("dense1", "tconv1"), ("conv2", "tconv2"), ("dense2", "tconv2")),
    *(("conv3", "tconv3"), ("dense3", "tconv3")),
]


def trained(model: Transformer, steps: int = 60) -> Transformer:
    p = model.decoder.out_features
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    tokens = torch.stack([a.flatten(), b.flatten(), torch.full((p * p,), p)], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1.0)
    for _ in range(steps):
        loss = cross_entropy(model(tokens), (a + b).flatten() % p)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def compare(
    model: nn.Module, rule: Rule, keys: dict[tuple[str, str], tuple[str, str]], **options: object
) -> dict[tuple[str, str], np.ndarray]:
    """Hold the alignments of a model against the rule, and return those of other pairs."""
    model.double()
    weights = {name: w.detach().numpy() for name, w in model.state_dict().items()}
    frame = SpectralMonitor(model, method="exact", reference=None, **options).step()  # type: ignore
    assert frame is not None
    others = dict(frame.alignment)
    for (first, second), theirs in keys.items():
        np.testing.assert_allclose(
            others.pop((first, second)), rule(weights, *theirs)[:100], atol=1e-6
        )
    return others


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("steps", [0, 60])
def test_of_a_transformer(steps: int, is_traced: bool) -> None:
    torch.manual_seed(0)
    model = trained(Transformer().double(), steps)
    pairs = sk.trace(model, torch.tensor([[3, 1, 2], [0, 5, 4]])) if is_traced else "auto"
    ours = {(a + x, b + y): (a, b) for (a, b), (x, y) in TRANSFORMER_PAIRS.items()}
    others = compare(model, partial(authors_rules.attention, heads=HEADS), ours, pairs=pairs)
    # Their text has values and output by head, too.
    fused, out = "block.self_attn.in_proj_weight", "block.self_attn.out_proj.weight"
    assert list(others) == [(f"{fused}[v, by head]", f"{out}[by head]")]


@pytest.mark.parametrize("is_traced", [False, True])
def test_of_a_recurrent_network(is_traced: bool) -> None:
    torch.manual_seed(0)
    model = Speech()
    pairs = sk.trace(model, torch.randn(2, 4, 5)) if is_traced else "auto"
    ours = {}
    for way, half in (("", "0:6"), ("_reverse", "6:12")):
        for layer in range(3):
            ih, hh = (f"lstm.weight_{role}_l{layer}{way}" for role in ("ih", "hh"))
            ours[f"{ih}[gate g]", hh] = (ih, hh)
            following = f"lstm.weight_ih_l{layer + 1}{way}" if layer < 2 else "linear.weight"
            for weight in (ih, hh):
                key = (f"{weight}[gate g]", f"{following}[inputs {half}]")
                ours[key] = (weight, following)
    assert compare(model, authors_rules.speech, ours, pairs=pairs) == {}


def test_of_a_network_with_added_skips() -> None:
    torch.manual_seed(0)

    def weight(layer: str) -> str:
        return f"{layer}.dense.weight" if layer.startswith("dense") else f"{layer}.weight"

    pairs = [(weight(first), weight(second)) for first, second in UNET_PAIRS]
    assert len(pairs) == 17
    ours = dict(zip(pairs, pairs, strict=True))
    assert compare(UNet(), authors_rules.unet, ours, pairs=pairs) == {}
