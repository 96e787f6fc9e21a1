"""A 12-layer, d = 768 Transformer in plain PyTorch, and its weights on three successive steps.

72 matrices, 85 M parameters: 48 of 768 x 768, 12 of 3072 x 768, 12 of 768 x 3072. The weights are
those after some steps of AdamW at 3e-4 on sequences that a fixed permutation of the tokens makes:
spectra still as flat as the initialisation leaves them, which is the hard case for leading vectors,
and moving as training moves them, by 0.2 % of the norm in a step.
"""

from __future__ import annotations

from functools import cache
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

LAYERS, D, HEADS, TOKENS, LENGTH = 12, 768, 12, 64, 64
STEPS, STATES, LEARNING_RATE = 20, 3, 3e-4


class Block(nn.Module):
    """Attention and an MLP, each after a layer norm."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(d, d, bias=False) for _ in range(4)
        )
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(heads.transpose(-2, -3).flatten(-2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """The 72 matrices are those of ``blocks``."""

    def __init__(
        self, layers: int = LAYERS, d: int = D, heads: int = HEADS, tokens: int = TOKENS
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.head = nn.Linear(d, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def matrices(self) -> dict[str, Tensor]:
        """Weights of the blocks by name, detached."""
        return {n: p.detach() for n, p in self.blocks.named_parameters("blocks") if p.dim() > 1}


@cache
def trained() -> tuple[Transformer, list[dict[str, Tensor]]]:
    """The model, and copies of its matrices after each of the last steps."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    following = torch.randperm(TOKENS)
    states = []
    for step in range(STEPS + STATES - 1):
        tokens = torch.randint(TOKENS, (1, 1))
        for _ in range(LENGTH):
            tokens = torch.cat((tokens, following[tokens[:, -1:]]), dim=1)
        logits = model(tokens[:, :-1])
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= STEPS - 1:
            states.append({name: A.clone() for name, A in model.matrices().items()})
    optimizer.zero_grad()
    return model.requires_grad_(False), states


class Walk:
    """To and fro between the states, each a training step from the last, in the model's memory."""

    def __init__(self) -> None:
        self.model, self.states = trained()
        self.at = 0
        self._order = cycle([*range(STATES), *range(STATES - 2, 0, -1)])
        # One matrix of each shape stands for the others.
        shapes = {tuple(A.shape): name for name, A in self.states[0].items()}
        self.looked_at = list(shapes.values())
        self._truths = [
            {name: torch.linalg.svdvals(state[name].double()) for name in self.looked_at}
            for state in self.states
        ]

    def step(self) -> None:
        """Copy the next state in, as an optimizer would write there: 340 MB."""
        self.at = next(self._order)
        for name, A in self.model.matrices().items():
            A.copy_(self.states[self.at][name])

    def error(self, values: dict[str, Tensor]) -> float:
        """Largest error of these leading values of the matrices looked at, relative to sigma_1."""
        worst = 0.0
        for name, truth in self._truths[self.at].items():
            found = torch.as_tensor(values[name]).double()
            worst = max(worst, float((found - truth[: len(found)]).abs().max() / truth[0]))
        return worst


@cache
def walk() -> Walk:
    """The one walk of the process."""
    return Walk()
