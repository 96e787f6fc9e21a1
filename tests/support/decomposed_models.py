"""Small models whose layers are decomposed in tests."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
from spectral_monitor.decomposed.layers.embedding import DecomposedEmbedding
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor, nn

from spectral_kernels.runtime.numerics import default_rtol
from tests.support.monitored import Net, truth


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers ``0``, ``2``, ``4``, ... with ReLU between them."""
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class LanguageModel(nn.Module):
    """Token embedding, one hidden layer, and an output layer with the embedding's weight."""

    def __init__(self, tokens: int = 30, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, tokens)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Scores of the next token, (..., tokens)."""
        y: Tensor = self.head(torch.tanh(self.hidden(self.embed(ids))))
        return y


class Mixed(nn.Module):
    """A convolution, an attention, linear layers at two depths, and what has no decomposed form."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, width, 3, padding=1)
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList([mlp(width, 24, width) for _ in range(2)])
        self.by_name = nn.ModuleDict({"head": nn.Linear(width, 5)})

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 4, length) to (batch, length, 5)."""
        h = self.conv(x).mT
        h = self.norm(h + self.attn(h, h, h)[0])
        for block in self.blocks:
            h = h + block(h)
        y: Tensor = self.by_name["head"](h)
        return y


def count(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def types(model: nn.Module) -> dict[str, str]:
    """Name -> type of all modules."""
    return {name: type(module).__name__ for name, module in model.named_modules()}


def state(model: nn.Module) -> dict[str, Any]:
    """A copy of all values, to see that nothing changed."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def error(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest entry of ``b``; absolute where ``b`` is zero."""
    a, b = a.detach(), b.detach()
    scale = float(b.abs().max()) or 1.0
    return float((a - b).abs().max()) / scale


def layer(model: nn.Module, name: str) -> DecomposedLayer:
    found = model.get_submodule(name.removesuffix("_weight").removesuffix(".weight"))
    assert isinstance(found, DecomposedLayer)
    return found


def product(model: nn.Module, name: str) -> Tensor:
    """The matrix of a layer in float64."""
    U, Sigma, Vh = (x.detach().double() for x in layer(model, name).factors())
    return U @ Sigma @ Vh


# Names of `Net` whose layers `decomposed` replaces.
LAYERS = (
    "embed",
    "block.self_attn.in_proj",
    "block.self_attn.out_proj",
    "block.linear1",
    "block.linear2",
    "head",
)


def decomposed(dense: Net, rank: float | None = None) -> Net:
    """The same model with all its layers decomposed."""
    model = copy.deepcopy(dense)
    block: Any = model.block
    model.embed = DecomposedEmbedding.from_embedding(model.embed, rank)  # type: ignore[assignment]
    block.self_attn = DecomposedMultiheadAttention.from_attention(block.self_attn, rank)
    block.linear1 = DecomposedLinear.from_linear(block.linear1, rank)
    block.linear2 = DecomposedLinear.from_linear(block.linear2, rank)
    model.head = DecomposedLinear.from_linear(model.head, rank)  # type: ignore[assignment]
    return model


def weight_of(layer_name: str) -> str:
    """The name of a layer's weight, which is the one from before the decomposition."""
    return f"{layer_name}.weight".replace("in_proj.weight", "in_proj_weight")


def assert_within_bounds(frame: SpectralFrame, model: nn.Module) -> None:
    for name, row in frame.matrices.items():
        A = product(model, name)
        expected = truth(A)
        S = expected.pop("singular_values")
        assert row.shape == tuple(A.shape)
        assert len(row.singular_values) <= layer(model, name).rank
        error = np.abs(row.singular_values - S[: len(row.singular_values)])
        assert (error <= row.singular_value_bounds).all(), name
        for metric, value in expected.items():
            assert abs(getattr(row, metric) - value) <= row.bounds[metric], (name, metric)
        rank = np.count_nonzero(default_rtol(*row.shape, torch.float32) * S[0] < S)
        assert abs(row.numerical_rank - rank) <= row.bounds["numerical_rank"], name
        assert row.normalized_stable_rank == row.stable_rank / min(row.shape)
