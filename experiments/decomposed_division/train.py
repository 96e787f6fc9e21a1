"""Train the decoder on division, measured at steps evenly spaced in log steps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.decomposed_division.data import Split, division_split
from experiments.decomposed_division.model import make_model
from experiments.decomposed_division.presets import Settings
from experiments.kit.batches import Batches
from experiments.kit.checkpoint import seed_everything
from experiments.kit.options import Options
from experiments.kit.scores import scores
from experiments.kit.training import Task, Training
from experiments.kit.training import train as train_task


def train(options: Options[Settings], folder: Path) -> Training:
    """Train until the settings' end, from the folder's checkpoint where there is one."""
    settings = options.settings
    seed_everything(options.seed)
    split = division_split(settings.p, settings.train_fraction, options.seed, options.device)
    task = make_task(make_model(settings).to(options.device), settings, split, options.seed)
    title = f"division mod {settings.p}, {settings.decompose}"
    return train_task(task, settings, folder, options.device, title=title)


def make_task(model: nn.Module, settings: Settings, split: Split, seed: int) -> Task:
    """What is trained: batches of the training equations, cross-entropy of the quotient."""

    def loss(indices: Tensor) -> Tensor:
        logits = model(split.train_tokens.index_select(0, indices))
        return nn.functional.cross_entropy(logits, split.train_quotients.index_select(0, indices))

    def evaluate() -> dict[str, Tensor]:
        shown = settings.train_measured
        train_loss, train_accuracy = scores(
            model, split.train_tokens[:shown], split.train_quotients[:shown]
        )
        test_loss, test_accuracy = scores(model, split.test_tokens, split.test_quotients)
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
        batches=Batches(len(split.train_tokens), settings.batch_size, seed),
        rate=lambda step: warmed_up(settings, step),
    )


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW as in section 4."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        # One kernel for all parameters, which reads its learning rate from a tensor.
        fused=True,
    )


def warmed_up(settings: Settings, step: int) -> float:
    """The learning rate of update ``step`` (from 0): linear up to update ``warmup_steps``."""
    return settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
