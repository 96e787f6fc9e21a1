"""A toy training task of the kit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.kit.batches import Batches
from experiments.kit.checkpoint import seed_everything
from experiments.kit.scores import scores
from experiments.kit.settings import TrainingSettings
from experiments.kit.training import Task

CPU = torch.device("cpu")


SETTINGS = TrainingSettings(batch_size=8, max_steps=60, points=12, checkpoint_every=10)


def toy(seed: int = 0, settings: TrainingSettings = SETTINGS) -> Task:
    """A two-layer network on points of a plane, told apart by a line."""
    seed_everything(seed)
    x = torch.randn(96, 2)
    y = (x.sum(dim=1) > 0).long()
    model = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def loss(indices: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x[:64][indices]), y[:64][indices])

    def evaluate() -> dict[str, Tensor]:
        train_loss, train_accuracy = scores(model, x[:64], y[:64])
        _, test_accuracy = scores(model, x[64:], y[64:])
        return {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
        }

    batches = Batches(64, settings.batch_size, seed)
    return Task(model, optimizer, loss, evaluate, batches, lambda step: 0.02 / (1 + step))
