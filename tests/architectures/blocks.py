"""What blocks of Transformers have in common, as statements of a `Truth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .truth import Side, Truth, Weight

__all__ = [
    "Attention",
    "Feeder",
    "fused",
    "gated",
    "heads_outside",
    "image",
    "parallel",
    "serial",
    "tokens",
]

Feeder = Weight | Side


@dataclass(frozen=True)
class Attention:
    """One attention layer: what reads its input, the three roles, what reads the values."""

    reads: Sequence[Feeder]
    q: Side
    k: Side
    v: Side
    o: Weight
    heads: int
    kv_heads: int | None = None

    @classmethod
    def separate(
        cls, q: Weight, k: Weight, v: Weight, o: Weight, heads: int, kv_heads: int | None = None
    ) -> Attention:
        """Three weights."""
        return cls([q, k, v], q.out, k.out, v.out, o, heads, kv_heads)

    def meet(self, truth: Truth) -> None:
        """State what happens inside."""
        truth.attention(self.q, self.k, self.v, self.o.into, self.heads, self.kv_heads)


def fused(
    qkv: Weight, o: Weight, heads: int, kv_heads: int | None = None, *, order: str = "qkv"
) -> Attention:
    """One weight, all heads of one role after all heads of another."""
    kv = kv_heads or heads
    size = len(qkv.out) // (heads + 2 * kv)
    roles: dict[str, Side] = {}
    start = 0
    for role in order:
        stop = start + size * (heads if role == "q" else kv)
        roles[role] = qkv.out.part(role, slice(start, stop))
        start = stop
    assert start == len(qkv.out)
    return Attention([qkv], roles["q"], roles["k"], roles["v"], o, heads, kv_heads)


def heads_outside(
    qkv: Weight, o: Weight, heads: int, kv_heads: int | None = None, *, order: str = "qkv"
) -> Attention:
    """One weight, for each group of heads that share their keys: its queries, a key, a value."""
    kv = kv_heads or heads
    share = heads // kv
    size = len(qkv.out) // (heads + 2 * kv)
    rows: dict[str, list[int]] = {role: [] for role in order}
    row = 0
    for _ in range(kv):
        for role in order:
            stop = row + size * (share if role == "q" else 1)
            rows[role].extend(range(row, stop))
            row = stop
    assert row == len(qkv.out)
    q, k, v = (qkv.out.part(role, rows[role]) for role in "qkv")
    return Attention([qkv], q, k, v, o, heads, kv_heads)


def gated(gate_up: Weight) -> tuple[Side, Side]:
    """Gate and up in one weight, one after the other."""
    size = len(gate_up.out) // 2
    return gate_up.out.part("gate", slice(size)), gate_up.out.part("up", slice(size, None))


def serial(
    truth: Truth,
    before: Sequence[Feeder],
    attention: Attention,
    up: Sequence[Weight],
    down: Weight,
    writes: Sequence[Feeder] | None = None,
) -> list[Feeder]:
    """A block where the MLP reads what attention wrote; returns what writes the output.

    Args:
        writes: what ``down`` reads, where ``up`` is a fused weight.
    """
    truth.feeds(before, attention.reads)
    attention.meet(truth)
    truth.feeds([attention.o], up)
    truth.feeds(up if writes is None else writes, [down])
    return [down]


def parallel(
    truth: Truth,
    before: Sequence[Feeder],
    attention: Attention,
    up: Sequence[Weight],
    down: Weight,
) -> list[Feeder]:
    """A block where attention and MLP read the same input and both are added."""
    truth.feeds(before, [*attention.reads, *up])
    attention.meet(truth)
    truth.feeds(up, [down])
    return [attention.o, down]


def tokens(vocabulary: int = 97, length: int = 11, seed: int = 0) -> Tensor:
    """Two sequences."""
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(seed))


def image(side: int = 28, channels: int = 3) -> Tensor:
    """Two images."""
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
