"""The two-layer decoder of Power et al. (2022), and the groups of its layers to decompose."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from spectral_monitor.decomposed.convert.model import decompose_model
from torch import Tensor, nn

from experiments.decomposed_division.data import SEQUENCE
from experiments.decomposed_division.presets import Settings

# The answer has a place of its own in the paper's table of positions, though it is never fed.
POSITIONS = SEQUENCE + 1

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
    It computes nothing twice and nothing that the answer does not need. A position of a decoder
    sees only what comes before it, so "a /" is the same in all equations with that a: it runs
    through the blocks once for each residue, as rows beside those of the batch. The last block
    makes the last position alone. For p = 97:

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
        self.p, d = settings.p, settings.d_model
        self.token_embedding = nn.Embedding(self.p + 2, d)
        self.position_embedding = nn.Embedding(POSITIONS, d)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(d)
        self.output = nn.Linear(d, self.p + 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at the last position, the only one with a target."""
        rows = distinct_rows(tokens, self.p)
        x = self.token_embedding(rows.tokens) + self.position_embedding(rows.places)
        *first, last = self.blocks
        for block in first:
            x = block(x, rows.seen, rows.hidden)
        logits: Tensor = self.output(self.norm(last(x, rows.seen, rows.hidden, len(tokens))))
        return logits


class Rows(NamedTuple):
    """The positions that differ, n of them: their tokens and places (n,), the rows that each sees
    (n, 4), and which of these are hidden from it since they come later, bool (n, 4).

    First all a, then all "/" after an a, then b and at last "=" of every equation of the batch.
    """

    tokens: Tensor
    places: Tensor
    seen: Tensor
    hidden: Tensor


def distinct_rows(tokens: Tensor, p: int) -> Rows:
    """The rows of equations [a, /, b, =] (batch, 4)."""
    device, batch = tokens.device, len(tokens)
    a, residues = tokens[:, 0], torch.arange(p, device=device)
    equations = torch.arange(2 * p, 2 * p + batch, device=device)
    # Where an equation's four positions are. Of a prefix the last two are hidden: any will do.
    prefix = torch.stack([residues, residues + p, residues, residues], dim=1)
    equation = torch.stack([a, a + p, equations, equations + batch], dim=1)
    sizes = (p, p, batch, batch)
    places = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(sizes)])
    return Rows(
        tokens=torch.cat([residues, torch.full_like(residues, p), tokens[:, 2], tokens[:, 3]]),
        places=places,
        seen=torch.cat([prefix, prefix, equation, equation]),
        hidden=torch.arange(SEQUENCE, device=device) > places[:, None],
    )


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

    def forward(self, x: Tensor, seen: Tensor, hidden: Tensor, last: int | None = None) -> Tensor:
        """Rows x (n, d) to the same, or to the ``last`` of them; see `Rows`."""
        attended = self.attention(x, seen, hidden, last)
        x = self.attention_norm((x if last is None else x[-last:]) + attended)
        made: Tensor = self.mlp_norm(x + self.fc2(nn.functional.gelu(self.fc1(x))))
        return made


class Attention(nn.Module):
    """Attention of each row to those that it sees, with a fused input projection.

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

    def forward(self, x: Tensor, seen: Tensor, hidden: Tensor, last: int | None) -> Tensor:
        """What the rows x (n, d), or the ``last`` of them, gather."""
        d, heads = x.shape[1], self.num_heads
        query, of_all = self.in_proj(x).split((d, 2 * d), dim=1)
        if last is not None:
            query, seen, hidden = query[-last:], seen[-last:], hidden[-last:]
        n, length = seen.shape
        query = query.view(n, 1, heads, d // heads)
        found = of_all.index_select(0, seen.flatten())
        key, value = found.view(n, length, 2, heads, d // heads).unbind(2)
        scores = (query * key).sum(-1) / math.sqrt(d // heads)
        shares = scores.masked_fill(hidden[..., None], -math.inf).softmax(dim=1)
        made: Tensor = self.out_proj((shares[..., None] * value).sum(dim=1).view(n, d))
        return made
