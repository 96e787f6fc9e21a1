"""The one-layer Transformer of Nanda et al., "Progress measures for grokking" (2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from experiments.modular_addition.presets import Settings

SEQUENCE = 3  # [i, j, =]


class AdditionTransformer(nn.Module):
    """Tokens (batch, 3) int64 -> logits (batch, p + 1) float32 after "=".

    One block without LayerNorm: attention over the three positions, then a ReLU MLP, each added to
    the residual stream; embedding and unembedding are not tied. Biases are in the MLP alone
    (``extra_biases`` gives the attention and the unembedding theirs). With learned positions and
    p = 113 that makes 226,816 parameters:

    ==================  ==========================  ========
    embedding           114 × 128                     14,592
    positions           3 × 128                          384
    query, key, value,  4 × 128 × 128                 65,536
    attention output
    MLP in, with bias   512 × 128 + 512               66,048
    MLP out, with bias  128 × 512 + 128               65,664
    unembedding         114 × 128                     14,592
    ==================  ==========================  ========
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        d, vocabulary = settings.d_model, settings.p + 1
        bias = settings.extra_biases
        self.embedding = nn.Embedding(vocabulary, d)
        self.positions: nn.Embedding | None = None
        if settings.positions == "learned":
            self.positions = nn.Embedding(SEQUENCE, d)
        else:
            self.register_buffer("sinusoids", sinusoids(SEQUENCE, d), persistent=False)
        self.attention = Attention(d, settings.heads, bias)
        self.mlp_in = nn.Linear(d, settings.d_mlp)
        self.mlp_out = nn.Linear(settings.d_mlp, d)
        self.unembedding = nn.Linear(d, vocabulary, bias=bias)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Nanda's: normal with variance 1 / d_model, 1 / vocabulary for the unembedding; biases 0.

        MLP out has d_mlp inputs and still the variance 1 / d_model.
        """
        d = self.embedding.embedding_dim
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.zero_()
            else:
                fan = parameter.shape[0] if name == "unembedding.weight" else d
                parameter.normal_(0.0, 1.0 / math.sqrt(fan))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at the last position; the only one with a target, so the only one computed."""
        x = self.embedding(tokens) + self._position_vectors()
        last = x[:, -1] + self.attention(x)
        last = last + self.mlp_out(torch.relu(self.mlp_in(last)))
        logits: Tensor = self.unembedding(last)
        return logits

    def _position_vectors(self) -> Tensor:
        if self.positions is not None:
            return self.positions.weight
        return self.get_buffer("sinusoids")


class Attention(nn.Module):
    """What the last position gathers from all positions: (batch, length, d) -> (batch, d)."""

    def __init__(self, d: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.query = nn.Linear(d, d, bias=bias)
        self.key = nn.Linear(d, d, bias=bias)
        self.value = nn.Linear(d, d, bias=bias)
        self.output = nn.Linear(d, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """The last position's row of causal attention, which hides nothing from it."""
        batch, length, d = x.shape
        width = d // self.num_heads
        query = self.query(x[:, -1]).view(batch, 1, self.num_heads, width)
        key = self.key(x).view(batch, length, self.num_heads, width)
        value = self.value(x).view(batch, length, self.num_heads, width)
        scores = (query * key).sum(-1, keepdim=True) / math.sqrt(width)
        gathered = (scores.softmax(dim=1) * value).sum(dim=1).view(batch, d)
        output: Tensor = self.output(gathered)
        return output


def sinusoids(length: int, d: int) -> Tensor:
    """Position vectors (length, d) of Vaswani et al. (2017), section 3.5."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, d, 2, dtype=torch.float32) * (-math.log(10_000.0) / d))
    table = torch.empty(length, d)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: d // 2])
    return table
