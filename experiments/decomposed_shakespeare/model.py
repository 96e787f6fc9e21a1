"""The character Transformer of Karpathy's "Let's build GPT" (2023), whose sizes the paper has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.decomposed_shakespeare.presets import Settings


class CharacterTransformer(nn.Module):
    """Characters (batch, length) int64 -> logits (batch, length, vocabulary) of the next ones.

    Every head's query, key and value is a layer of its own, so that each is decomposed by itself:
    only then do the paper's parameters come out. With 65 characters and the paper's sizes:

    ==================  =============================  ==========
    embedding           65 × 384                           24,960
    positions           256 × 384                          98,304
    queries, keys,      6 blocks × 18 × 64 × 384        2,654,208
    values
    projection          6 × (384 × 384 + 384)             887,040
    feed forward        6 × (2 × 384 × 1536 + 1920)     7,089,408
    LayerNorms          13 × 768                            9,984
    output              65 × 384 + 65                      25,025
    all                                                10,788,929
    ==================  =============================  ==========
    """

    def __init__(self, settings: Settings, vocabulary: int) -> None:
        super().__init__()
        d = settings.d_model
        self.embedding = nn.Embedding(vocabulary, d)
        self.positions = nn.Embedding(settings.length, d)
        self.blocks = nn.Sequential(*(Block(settings) for _ in range(settings.layers)))
        self.norm = nn.LayerNorm(d)
        self.output = nn.Linear(d, vocabulary)
        self.apply(lambda module: _initialize(module, settings.initial_deviation))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at every position, each from the characters up to it."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(places)
        logits: Tensor = self.output(self.norm(self.blocks(x)))
        return logits


class Block(nn.Module):
    """Attention, then feed forward, each on a normalised copy of the residual stream."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        d = settings.d_model
        self.norm_attention = nn.LayerNorm(d)
        self.attention = Attention(d, settings.heads, settings.dropout)
        self.norm_mlp = nn.LayerNorm(d)
        self.mlp_in = nn.Linear(d, 4 * d)
        self.mlp_out = nn.Linear(4 * d, d)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, d) -> the same shape."""
        x = x + self.attention(self.norm_attention(x))
        hidden = torch.relu(self.mlp_in(self.norm_mlp(x)))
        added: Tensor = self.dropout(self.mlp_out(hidden))
        return x + added


class Attention(nn.Module):
    """Causal attention whose heads have layers of their own, (batch, length, d) -> the same."""

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.ModuleList(nn.Linear(d, d // heads, bias=False) for _ in range(heads))
            for _ in range(3)
        )
        self.projection = nn.Linear(d, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Each position gathers from itself and the ones before it."""
        query, key, value = (
            torch.stack([layer(x) for layer in layers], dim=1)
            for layers in (self.query, self.key, self.value)
        )
        gathered = nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout.p * self.training, is_causal=True
        )
        output: Tensor = self.dropout(self.projection(gathered.transpose(1, 2).flatten(2)))
        return output


def _initialize(module: nn.Module, deviation: float) -> None:
    """Karpathy's: normal weights; biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=deviation)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
