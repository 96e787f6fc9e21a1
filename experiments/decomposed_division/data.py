"""All equations a / b = c modulo a prime, split once into training and test equations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SEQUENCE = 4  # [a, /, b, =]


class Split(NamedTuple):
    """Token sequences [a, /, b, =], int64 (equations, 4), and their quotients, int64."""

    train_tokens: Tensor
    train_quotients: Tensor
    test_tokens: Tensor
    test_quotients: Tensor


def division_split(p: int, train_fraction: float, seed: int, device: torch.device) -> Split:
    """Split the p (p - 1) equations with b != 0 at random, that share of them for training.

    Residues are tokens 0 to p - 1, "/" is token p and "=" token p + 1. The shuffle is drawn from
    a generator of its own on the CPU, so the split depends on ``seed`` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(p * (p - 1), generator=generator)
    # For each quotient c and divisor b there is one a = c b: no inverse is needed.
    c, b = order // (p - 1), order % (p - 1) + 1
    a = c * b % p
    tokens = torch.stack([a, torch.full_like(a, p), b, torch.full_like(a, p + 1)], dim=1)
    count = int(train_fraction * len(order))
    parts = tokens[:count], c[:count], tokens[count:], c[count:]
    return Split(*(part.to(device) for part in parts))
