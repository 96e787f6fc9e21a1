"""What is trained: the label of each image, in cross-entropy or squared error."""

from __future__ import annotations

import torch
from spectral_monitor.decomposed.weight_decay import parameter_groups
from torch import Tensor, nn

from experiments.decomposed_mnist.data import load_images
from experiments.decomposed_mnist.model import make_model
from experiments.decomposed_mnist.presets import Settings
from experiments.kit.batches import Batches
from experiments.kit.options import Options
from experiments.kit.scores import Loss
from experiments.kit.supervised import train_and_test
from experiments.kit.training import Task

# Images that are measured at a time.
CHUNK = 1024


def make_task(options: Options[Settings]) -> Task:
    """The network, its images and its optimizer. Raises ``ValueError`` for images that are not
    there, as `load_images` does."""
    settings = options.settings
    images = load_images(options.data, settings.train_images, options.device)
    model = make_model(settings, images.train_pixels.shape[1]).to(options.device)
    criterion: Loss = one_hot_error if settings.loss == "mse" else nn.functional.cross_entropy

    def loss(indices: Tensor) -> Tensor:
        logits = model(images.train_pixels.index_select(0, indices))
        return criterion(logits, images.train_labels.index_select(0, indices))

    shown = images.measured
    train = images.train_pixels[:shown], images.train_labels[:shown]
    test = images.test_pixels, images.test_labels
    return Task(
        model=model,
        optimizer=make_optimizer(model, settings),
        loss=loss,
        evaluate=lambda: train_and_test(model, train, test, loss=criterion, chunk=CHUNK),
        batches=Batches(len(images.train_labels), settings.batch_size, options.seed),
        rate=lambda step: settings.learning_rate,
    )


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD or AdamW; decay on every parameter, or on all but the factors."""
    decay = settings.weight_decay
    parameters = model.parameters() if settings.decay_factors else parameter_groups(model, decay)
    # Fused: one kernel for all parameters, which reads its learning rate from a tensor.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=decay,
            fused=True,
        )
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=decay, fused=True)


def one_hot_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over (batch, classes) of the squared distance to the one-hot labels."""
    targets = torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
    return nn.functional.mse_loss(logits, targets)
