"""All pairs of residues, split once into training and validation pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Token sequences [i, j, =], int64 (pairs, 3), their sums (i + j) mod p, int64 (pairs,), and
    which validation pairs (i, j) have their mirror (j, i) among the training pairs, bool (pairs,).
    """

    train_tokens: Tensor
    train_sums: Tensor
    validation_tokens: Tensor
    validation_sums: Tensor
    mirror_is_trained: Tensor


def addition_split(p: int, train_fraction: float, seed: int, device: torch.device) -> Split:
    """Split the p² ordered pairs at random, ``floor(train_fraction · p²)`` of them for training.

    Residues are tokens 0 to p − 1 and "=" is token p. The shuffle is drawn from a generator of its
    own on the CPU, so the split depends on ``seed`` alone.

    Addition commutes and the network's two positions are nearly symmetric, so a validation pair
    whose mirror was trained on is answered without any idea of the sum; ``mirror_is_trained`` tells
    those apart.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(p * p, generator=generator)
    i, j = order // p, order % p
    tokens = torch.stack([i, j, torch.full_like(i, p)], dim=1)
    sums = (i + j) % p
    count = int(train_fraction * p * p)
    trained = torch.zeros(p, p, dtype=torch.bool)
    trained[i[:count], j[:count]] = True
    parts = (
        tokens[:count],
        sums[:count],
        tokens[count:],
        sums[count:],
        trained[j[count:], i[count:]],
    )
    return Split(*(part.to(device) for part in parts))
