"""Which examples each optimizer step sees: index tables made ahead, from a seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A table covers at least so many steps: on a GPU the host prepares the next one seldom.
STEPS_PER_TABLE = 1024


@dataclass(frozen=True)
class Batches:
    """Batches of ``size`` of the ``examples`` 0, 1, ..., for steps without end.

    Every epoch is a new order of all examples, cut into whole batches; what is left over waits
    for the next order. The table of a step depends on the seed and the step alone, so a resumed
    run needs no state of a generator. A size above the number of examples means all of them.

    ``replacement`` draws every batch by itself instead, each example with equal chance, as is
    usual for windows of a text.
    """

    examples: int
    size: int
    seed: int
    replacement: bool = False

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        if self.examples < 1 or self.size < 1:
            raise ValueError(
                f"{self.examples} examples in batches of {self.size}; expected at least 1 of each"
            )

    @property
    def width(self) -> int:
        """Examples in a batch."""
        return self.size if self.replacement else min(self.size, self.examples)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one order of all examples."""
        return max(1, self.examples // self.width)

    @property
    def steps_per_table(self) -> int:
        """Rows of a table: whole epochs."""
        return self.steps_per_epoch * -(-STEPS_PER_TABLE // self.steps_per_epoch)

    def table(self, number: int) -> Tensor:
        """Indices, int64 (steps_per_table, width) on the CPU.

        Row i of table ``number`` is the batch of step ``number * steps_per_table + i``.
        """
        shape = (self.steps_per_table, self.width)
        # torch's generator takes 32 bits of a seed; these are mixed from both numbers.
        mixed = np.random.SeedSequence((self.seed, number)).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        if self.replacement:
            return torch.randint(self.examples, shape, generator=generator)
        kept = self.steps_per_epoch * self.width
        epochs = self.steps_per_table // self.steps_per_epoch
        orders = [torch.randperm(self.examples, generator=generator) for _ in range(epochs)]
        return torch.stack([order[:kept] for order in orders]).view(shape)
