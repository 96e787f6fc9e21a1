"""A text as characters, its beginning for training and its end for tests."""

from __future__ import annotations

import pydoc_data.topics
import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Text(NamedTuple):
    """Both parts of a text as indices into ``characters``, int64 (length,)."""

    train: Tensor
    test: Tensor
    characters: str


def read_text(folder: Path | None) -> str:
    """``input.txt`` of ``folder``, or without one the reference that comes with Python.

    That is the text of ``help()`` topics, some 465,000 characters that differ a little between
    versions of Python. The topics are shuffled, the same way every time: in their own order the
    last ones are easier to predict than the others, and the gap between training and test accuracy
    would say nothing. Raises ``ValueError`` where the folder has no ``input.txt``.
    """
    if folder is None:
        topics = sorted(pydoc_data.topics.topics.values())
        random.Random(0).shuffle(topics)
        return "\n".join(topics)
    path = folder / "input.txt"
    if not path.is_file():
        raise ValueError(f"{folder} has no input.txt; expected a folder with the text to learn")
    return path.read_text(encoding="utf-8")


def split_text(text: str, train_fraction: float) -> Text:
    """The first ``floor(train_fraction · length)`` characters, and the rest.

    The characters are those of the whole text, sorted, so that every part has the same vocabulary.
    """
    characters = "".join(sorted(set(text)))
    index = {character: i for i, character in enumerate(characters)}
    tokens = torch.tensor([index[character] for character in text])
    count = int(train_fraction * len(tokens))
    return Text(tokens[:count], tokens[count:], characters)


def random_windows(tokens: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Windows that start anywhere, and the same one character further, int64 (batch, length)."""
    starts = torch.randint(len(tokens) - length, (batch,))
    return _windows(tokens, starts, length)


def even_windows(tokens: Tensor, most: int, length: int) -> tuple[Tensor, Tensor]:
    """At most ``most`` windows that do not overlap, evenly spread over the text: the same ones in
    every run, so that runs are compared on the same characters."""
    fitting = (len(tokens) - 1) // length
    count = min(most, fitting)
    starts = torch.arange(count) * fitting // count * length
    return _windows(tokens, starts, length)


def _windows(tokens: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    at = (starts[:, None] + torch.arange(length)).to(tokens.device)
    return tokens[at], tokens[at + 1]
