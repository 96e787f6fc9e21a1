"""What the presets of the decomposed experiments have in common; every field is an option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A field of a preset: its default, and the help text of its command line option."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one supervised run; an experiment's own are a subclass.

    Raises ``ValueError`` for settings that no run can be made of, naming the field.
    """

    decompose: str = option("none", "the layers that are kept as U Sigma Vh")
    rank: float = option(1.0, "share of each decomposed layer's full rank that is kept")

    batch_size: int = option(512, "examples of one optimizer step")
    learning_rate: float = option(1e-3, "the optimizer's learning rate")
    max_steps: int = option(10_000, "optimizer steps after which the run ends in any case")

    points: int = option(200, "measured steps, evenly spaced in log steps, and step 0")
    gap_level: float = option(0.99, "training accuracy from which on the gap may count as closed")
    stop_at_gap: bool = option(False, "end as soon as the generalisation gap is closed")
    checkpoint_every: int = option(500, "optimizer steps between two checkpoints")

    def __post_init__(self) -> None:
        """Refuse settings that no run can be made of."""
        for name in ("batch_size", "max_steps", "points", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("rank", "gap_level"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 < {name} <= 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected more than 0")
