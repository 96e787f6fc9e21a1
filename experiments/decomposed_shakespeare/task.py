"""What is trained: the next character at every position of random windows."""

from __future__ import annotations

import torch
from spectral_monitor.decomposed.convert.model import decompose_model
from torch import Tensor, nn

from experiments.decomposed_shakespeare.data import even_starts, read_text, split_text, windows
from experiments.decomposed_shakespeare.model import CharacterTransformer
from experiments.decomposed_shakespeare.presets import Settings, ranks
from experiments.kit.batches import Batches
from experiments.kit.options import Options
from experiments.kit.supervised import train_and_test
from experiments.kit.training import Task

# Windows that are measured at a time.
CHUNK = 64


def make_task(options: Options[Settings]) -> Task:
    """The model, its text and its optimizer. Raises ``ValueError`` for a text that is too short."""
    settings, device = options.settings, options.device
    length = settings.length
    text = split_text(read_text(options.data), settings.train_fraction)
    for name, part in (("training", text.train), ("test", text.test)):
        if len(part) <= length:
            raise ValueError(
                f"the {name} part of the text has {len(part)} characters; expected more than "
                f"length, which is {length}"
            )
    model = CharacterTransformer(settings, len(text.characters))
    if settings.decompose != "none":
        decompose_model(model, ranks(settings))
    model.to(device)
    train, test = text.train.to(device), text.test.to(device)
    measured = [
        windows(part, even_starts(len(part), settings.measured_windows, length), length)
        for part in (train, test)
    ]

    def loss(starts: Tensor) -> Tensor:
        characters, following = windows(train, starts, length)
        return nn.functional.cross_entropy(model(characters).flatten(0, 1), following.flatten())

    return Task(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True),
        loss=loss,
        evaluate=lambda: train_and_test(model, measured[0], measured[1], chunk=CHUNK),
        batches=Batches(len(train) - length, settings.batch_size, options.seed, replacement=True),
        rate=lambda step: settings.learning_rate,
    )
