"""What is trained and measured: the quotient of batches of equations."""

from __future__ import annotations

import torch
from spectral_monitor.decomposed.weight_decay import parameter_groups
from torch import Tensor, nn

from experiments.decomposed_division.data import Split, division_split
from experiments.decomposed_division.model import make_model
from experiments.decomposed_division.presets import Settings
from experiments.kit.batches import Batches
from experiments.kit.options import Options
from experiments.kit.supervised import train_and_test
from experiments.kit.training import Task

# Equations that go through the model at a time when it is measured: what a core's caches hold, or
# all of them where it is launches that take the time.
CHUNK = {"cpu": 1024, "cuda": 16_384}


def make_task(options: Options[Settings]) -> Task:
    """The network, its optimizer and its data, from the generators as they are."""
    settings, device = options.settings, options.device
    split = division_split(settings.p, settings.train_fraction, options.seed, device)
    model = make_model(settings).to(device)
    shown = settings.train_measured
    measured = (
        (split.train_tokens[:shown], split.train_quotients[:shown]),
        (split.test_tokens, split.test_quotients),
    )
    return Task(
        model=model,
        optimizer=make_optimizer(model, settings),
        loss=lambda indices: quotient_loss(model, split, indices),
        evaluate=lambda: train_and_test(model, *measured, chunk=CHUNK[device.type]),
        batches=Batches(len(split.train_tokens), settings.batch_size, options.seed),
        rate=lambda step: warmed_up(settings, step),
    )


def quotient_loss(model: nn.Module, split: Split, indices: Tensor) -> Tensor:
    """Mean cross-entropy of training equations (batch,), at the last position."""
    logits = model(split.train_tokens.index_select(0, indices))
    return nn.functional.cross_entropy(logits, split.train_quotients.index_select(0, indices))


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW as in section 4; whatever decay there is spares the factors."""
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        # One kernel for all parameters, which reads its learning rate from a tensor.
        fused=True,
    )


def warmed_up(settings: Settings, step: int) -> float:
    """The learning rate of update ``step`` (from 0): linear up to update ``warmup_steps``."""
    return settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
