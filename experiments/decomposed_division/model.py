"""The two-layer decoder of Power et al. (2022), and the groups of its layers to decompose."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from experiments.decomposed_division.data import SEQUENCE
from experiments.decomposed_division.presets import Settings
from python_api.decomposed.model import decompose_model

# The answer has a place of its own in the paper's table of positions, though it is never fed.
POSITIONS = SEQUENCE + 1
PREFIX = 2  # [a, /]

_ALL_BUT_POSITIONS = ["token_embedding", "blocks.*.attention.*_proj", "blocks.*.fc?", "output"]

# Patterns of layer names (paper, section 4 and appendix B).
GROUPS = {
    "none": [],
    "embedding": ["token_embedding"],
    "positions": ["position_embedding"],
    "attention": ["blocks.*.attention.*_proj"],
    "qkv": ["blocks.*.attention.in_proj"],
    "proj": ["blocks.*.attention.out_proj"],
    "feed_forward": ["blocks.*.fc?"],
    "fc1": ["blocks.*.fc1"],
    "fc2": ["blocks.*.fc2"],
    "output": ["output"],
    "all": _ALL_BUT_POSITIONS,
    "everything": [*_ALL_BUT_POSITIONS, "position_embedding"],
}


def make_model(settings: Settings) -> DivisionTransformer:
    """The network with its chosen layers decomposed, from the same random numbers in any case."""
    model = DivisionTransformer(settings)
    patterns = GROUPS[settings.decompose]
    if patterns:
        decompose_model(model, dict.fromkeys(patterns, settings.rank))
    return model


class DivisionTransformer(nn.Module):
    """Tokens [a, /, b, =] (batch, 4) int64 -> logits (batch, p + 2) float32 after "=".

    A decoder whose blocks normalise after each residual sum; initial weights are torch's own.
    It computes no number twice and none that the answer does not need: a position of a decoder
    sees only what comes before it, so "a /" gives the same in all equations with the same a and
    runs through the blocks once for each residue, and the last block makes the last position
    alone. For p = 97:

    ================  =====================================  ========
    token embedding   99 x 128                                 12,672
    positions         5 x 128                                     640
    2 x attention     384 x 128 + 384, 128 x 128 + 128        132,096
    2 x feed-forward  512 x 128 + 512, 128 x 512 + 128        263,424
    5 x LayerNorm     2 x 128                                   1,280
    output            99 x 128 + 99                            12,771
    ================  =====================================  ========
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        d, p = settings.d_model, settings.p
        self.token_embedding = nn.Embedding(p + 2, d)
        self.position_embedding = nn.Embedding(POSITIONS, d)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(d)
        self.output = nn.Linear(d, p + 2)
        residues = torch.arange(p)
        prefixes = torch.stack([residues, torch.full_like(residues, p)], dim=1)
        self.register_buffer("prefixes", prefixes, persistent=False)
        self.register_buffer("places", torch.arange(SEQUENCE), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at the last position, the only one with a target."""
        a, rest = tokens[:, 0], tokens[:, PREFIX:]
        places: Tensor = self.position_embedding(self.get_buffer("places"))
        prefix = self.token_embedding(self.get_buffer("prefixes")) + places[:PREFIX]
        x = self.token_embedding(rest) + places[PREFIX:]
        final = len(self.blocks) - 1
        for i, block in enumerate(cast("list[Block]", list(self.blocks))):
            of_prefix = block.attention.project(prefix)
            seen = of_prefix.keys.index_select(0, a), of_prefix.values.index_select(0, a)
            x = block(x, block.attention.project(x).after(*seen), last_only=i == final)
            if i < final:
                prefix = block(prefix, of_prefix)
        logits: Tensor = self.output(self.norm(x))
        return logits


class Projected(NamedTuple):
    """Queries (batch, n, heads, width), and keys and values (batch, seen + n, heads, width)."""

    queries: Tensor
    keys: Tensor
    values: Tensor

    def after(self, keys: Tensor, values: Tensor) -> Projected:
        """With the keys and values of the positions before."""
        keys, values = torch.cat([keys, self.keys], 1), torch.cat([values, self.values], 1)
        return Projected(self.queries, keys, values)


class Block(nn.Module):
    """Causal attention and a GELU feed-forward block."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        d = settings.d_model
        self.attention = Attention(d, settings.heads)
        self.attention_norm = nn.LayerNorm(d)
        self.fc1 = nn.Linear(d, settings.d_mlp)
        self.fc2 = nn.Linear(settings.d_mlp, d)
        self.mlp_norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, projected: Projected, last_only: bool = False) -> Tensor:
        """Positions x (batch, n, d), projected, to the same; ``last_only`` gives (batch, d)."""
        if last_only:
            x, projected = x[:, -1], projected._replace(queries=projected.queries[:, -1:])
        attended = self.attention(projected).view_as(x)
        x = self.attention_norm(x + attended)
        made: Tensor = self.mlp_norm(x + self.fc2(nn.functional.gelu(self.fc1(x))))
        return made


class Attention(nn.Module):
    """Causal attention with a fused input projection.

    Initial values are those of ``nn.MultiheadAttention``.
    """

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.in_proj = nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor) -> Projected:
        """Queries, keys and values of positions x (batch, n, d)."""
        batch, n, d = x.shape
        parts = self.in_proj(x).view(batch, n, 3, self.num_heads, d // self.num_heads)
        return Projected(*parts.unbind(dim=2))

    def forward(self, projected: Projected) -> Tensor:
        """What the positions with queries, the last ones, gather: (batch, n, d)."""
        query, key, value = (part.transpose(1, 2) for part in projected)
        n, length = query.shape[2], key.shape[2]
        sees = torch.ones(n, length, dtype=torch.bool, device=key.device).tril(length - n)
        gathered = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        made: Tensor = self.out_proj(gathered.transpose(1, 2).flatten(2))
        return made
