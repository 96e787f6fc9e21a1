"""Images as flat vectors, and those whose accuracy is measured."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.kit.datasets import digits_or_mnist

CLASSES = 10

# The fewest training images that the training accuracy is measured on, where there are as many.
FEWEST_MEASURED = 1000


class Digits(NamedTuple):
    """Pixels float32 (count, pixels) in [0, 1] and labels int64 (count,).

    The training accuracy is measured on the first ``measured`` training images: as many as there
    are test images, and 1,000 or all where that is more. Of 60,000 it would take most of the time.
    """

    train_pixels: Tensor
    train_labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor
    measured: int


def load_images(data: Path | None, train_images: int | None, device: torch.device) -> Digits:
    """MNIST from the folder, or scikit-learn's digits where there is none.

    ``train_images`` takes so many of the training images, the same ones for every seed. Raises
    ``ValueError`` where there are fewer, and what `load_mnist` raises.
    """
    split = digits_or_mnist(data)
    available = len(split.train_labels)
    count = available if train_images is None else train_images
    if count > available:
        raise ValueError(
            f"train_images is {count}; expected at most {available}, all that {split.name} has"
        )
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(1))[:count]
    return Digits(
        split.train_images[chosen].flatten(1).to(device),
        split.train_labels[chosen].to(device),
        split.test_images.flatten(1).to(device),
        split.test_labels.to(device),
        measured=min(count, max(len(split.test_labels), FEWEST_MEASURED)),
    )
