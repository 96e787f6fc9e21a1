"""What is trained: the class of an image."""

from __future__ import annotations

import math

import torch
from spectral_monitor.decomposed.convert.model import decompose_model
from torch import Tensor, nn

from experiments.decomposed_vit.augment import augment
from experiments.decomposed_vit.model import VisionTransformer
from experiments.decomposed_vit.presets import Settings, ranks
from experiments.kit.batches import Batches
from experiments.kit.datasets import ImageSplit, load_cifar10, load_digits, load_mnist
from experiments.kit.options import Options
from experiments.kit.supervised import train_and_test
from experiments.kit.training import Task

CLASSES = 10
# Images that are measured at a time.
CHUNK = 512


def make_task(options: Options[Settings]) -> Task:
    """The model, its images and its optimizer."""
    settings, device = options.settings, options.device
    _, raw, labels, test_pixels, test_labels = read_images(options)
    deviation, mean = torch.std_mean(raw, (0, 2, 3), keepdim=True)
    test = ((test_pixels - mean) / deviation).to(device), test_labels.to(device)
    raw, labels, mean, deviation = (part.to(device) for part in (raw, labels, mean, deviation))
    train = (raw - mean) / deviation, labels
    _, channels, side, _ = raw.shape
    model = VisionTransformer(settings, side, channels, CLASSES)
    if settings.decompose != "none":
        decompose_model(model, ranks(settings, model.positions.num_embeddings))
    model.to(device)

    def loss(indices: Tensor) -> Tensor:
        if settings.augment:
            pixels = (augment(raw[indices]) - mean) / deviation
        else:
            pixels = train[0][indices]
        return nn.functional.cross_entropy(model(pixels), labels[indices])

    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True),
        loss=loss,
        evaluate=lambda: train_and_test(model, train, test, chunk=CHUNK),
        batches=Batches(len(train[0]), settings.batch_size, options.seed),
        rate=lambda step: learning_rate(settings, step),
    )


def read_images(options: Options[Settings]) -> ImageSplit:
    """The images that the settings name. Raises ``ValueError`` for files that are not there."""
    wanted = options.settings.images
    if wanted == "digits":
        return load_digits()
    assert options.data is not None, "`parse` has seen to that"
    return load_mnist(options.data) if wanted == "mnist" else load_cifar10(options.data)


def learning_rate(settings: Settings, step: int) -> float:
    """That of update ``step`` (from 0): a linear warm-up, then a cosine to the last one."""
    highest, last = settings.learning_rate, settings.last_learning_rate
    if step < settings.warmup_steps:
        return highest * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / (settings.max_steps - settings.warmup_steps)
    return last + (highest - last) * (1.0 + math.cos(math.pi * min(1.0, done))) / 2.0
