"""Training images shifted, flipped and changed at random, a batch at a time, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.decomposed_vit.randaugment import rand_augment


def augment(images: Tensor) -> Tensor:
    """Images (batch, channels, side, side) in [0, 1] as the paper changes them before it
    normalises: shifted by up to 4 pixels, half of them flipped, then two operations of
    RandAugment. Drawn from PyTorch's global generator."""
    return rand_augment(random_flip(random_shift(images, 4)))


def random_shift(images: Tensor, most: int) -> Tensor:
    """Each image cut at a place of its own out of itself with ``most`` pixels of black around."""
    batch, _, height, width = images.shape
    padded = nn.functional.pad(images, [most] * 4)
    top, left = torch.randint(2 * most + 1, (2, batch, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    at = torch.arange(batch, device=images.device)[:, None, None]
    # Indices around a slice put the sliced axis last.
    return padded[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: Tensor) -> Tensor:
    """Half of the images, left and right exchanged."""
    flipped = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)
