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


def windows(tokens: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """``length`` characters from each of ``starts`` (count,) on, and each one's next character,
    int64 (count, length)."""
    at = starts.to(tokens.device)[:, None] + torch.arange(length, device=tokens.device)
    return tokens[at], tokens[at + 1]


def even_starts(characters: int, most: int, length: int) -> Tensor:
    """Where at most ``most`` windows start, int64: evenly spread, none over another.

    They depend on nothing else, so that all runs are measured on the same characters.
    """
    fitting = (characters - 1) // length
    count = min(most, fitting)
    return torch.arange(count) * fitting // max(1, count) * length
