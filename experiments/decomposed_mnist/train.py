"""Train the network on digits, measured at steps evenly spaced in log steps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.decomposed_mnist.data import Digits, load_images
from experiments.decomposed_mnist.model import make_model
from experiments.decomposed_mnist.presets import Settings
from experiments.kit.batches import Batches
from experiments.kit.checkpoint import seed_everything
from experiments.kit.options import Options
from experiments.kit.scores import Loss, scores
from experiments.kit.training import Task, Training
from experiments.kit.training import train as train_task
from python_api.decomposed.groups import parameter_groups


def train(options: Options[Settings], folder: Path) -> Training:
    """Train until the settings' end, from the folder's checkpoint where there is one."""
    settings = options.settings
    digits = load_images(options.data, settings.train_images, options.device)
    seed_everything(options.seed)
    model = make_model(settings, digits.train_pixels.shape[1]).to(options.device)
    task = make_task(model, settings, digits, options.seed)
    title = f"digits, weight decay {settings.weight_decay:g}, {settings.decompose}"
    return train_task(task, settings, folder, options.device, title=title)


def make_task(model: nn.Module, settings: Settings, digits: Digits, seed: int) -> Task:
    """What is trained: batches of the training images, in the settings' loss."""
    criterion: Loss = one_hot_error if settings.loss == "mse" else nn.functional.cross_entropy

    def loss(indices: Tensor) -> Tensor:
        logits = model(digits.train_pixels.index_select(0, indices))
        return criterion(logits, digits.train_labels.index_select(0, indices))

    def evaluate() -> dict[str, Tensor]:
        shown = digits.measured
        train_loss, train_accuracy = scores(
            model, digits.train_pixels[:shown], digits.train_labels[:shown], loss=criterion
        )
        test_loss, test_accuracy = scores(
            model, digits.test_pixels, digits.test_labels, loss=criterion
        )
        return {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }

    return Task(
        model=model,
        optimizer=make_optimizer(model, settings),
        loss=loss,
        evaluate=evaluate,
        batches=Batches(len(digits.train_labels), settings.batch_size, seed),
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
