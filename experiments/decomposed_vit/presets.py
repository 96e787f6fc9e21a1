"""Named settings of the Vision Transformer; every field is a command line option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_ATTENTION = [f"blocks.*.attention.{part}" for part in ("query", "key", "value")]
_PROJECTION = ["blocks.*.attention.projection"]
_REST = [*_ATTENTION, *_PROJECTION, "blocks.*.fc2", "positions", "pre_output"]

# What the paper decomposes together (Figures 31 and 32), as patterns of layers' names. The layer
# of the patches is dense in all of them.
GROUPS = {
    "positions": ["positions"],
    "attention": _ATTENTION,
    "projection": _PROJECTION,
    "fc1": ["blocks.*.fc1"],
    "fc2": ["blocks.*.fc2"],
    "pre_output": ["pre_output"],
    "output": ["output"],
    "all_but_fc1_and_output": _REST,
    "all_but_fc1": [*_REST, "output"],
    "all_but_output": [*_REST, "blocks.*.fc1"],
    "all": [*_REST, "blocks.*.fc1", "output"],
}
_CHOICES = ", ".join(["none", *GROUPS])
RANKS = (0.125, 0.25, 0.5, 0.75, 1.0)


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What one run is made of. The defaults are those of the paper, appendix G.2."""

    decompose: str = _option("none", f"layers kept as U Sigma Vh: {_CHOICES}")
    rank: float = _option(1.0, "their rank, as a share of the full one")

    d_model: int = _option(128, "width of the residual stream; feed forward is twice as wide")
    layers: int = _option(6, "blocks of attention and feed forward")
    heads: int = _option(4, "attention heads, each d_model / heads wide")
    patch: int = _option(4, "side of a patch, in pixels")
    dropout: float = _option(0.1, "on the embedded patches, and on what is added to the stream")

    learning_rate: float = _option(5e-4, "Adam's highest learning rate")
    last_learning_rate: float = _option(1e-5, "the learning rate that the cosine ends at")
    warmup_epochs: int = _option(10, "epochs of linear warm-up")
    epochs: int = _option(100, "epochs in all")
    batch: int = _option(128, "images of an optimizer step")
    augment: bool = _option(True, "shift, flip and change the training images")
    checkpoint_every: int = _option(1_000, "optimizer steps between two checkpoints")

    def __post_init__(self) -> None:
        """Refuse settings that no run can be made of."""
        for name in ("d_model", "layers", "heads", "patch", "epochs", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs} of {self.epochs} epochs; "
                "expected at least 0 and fewer than all"
            )
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model is {self.d_model} and heads is {self.heads}; "
                "expected d_model to be a multiple of heads"
            )
        if self.decompose not in ("none", *GROUPS):
            raise ValueError(f"decompose is {self.decompose!r}; expected {_CHOICES}")
        if not 0 < self.rank <= 1:
            raise ValueError(f"rank is {self.rank}; expected a share, more than 0 and at most 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected at least 0 and less than 1")


def ranks(settings: Settings, positions: int) -> dict[str, int | float]:
    """Patterns of layers' names -> their rank, for `decompose_model`.

    The positions' rank is a share of the width, as in the paper, and not of the number of
    positions, which is smaller: 16 of 64 at 12.5 %. That is what its 363,658 parameters are made
    of.
    """
    of_positions = min(positions, max(1, round(settings.rank * settings.d_model)))
    return {
        pattern: of_positions if pattern == "positions" else settings.rank
        for pattern in GROUPS.get(settings.decompose, [])
    }


PRESETS = {
    # Digits of 8 × 8 pixels: seconds a run on one core.
    "cpu": Settings(
        d_model=64,
        layers=2,
        patch=2,
        learning_rate=2e-3,
        warmup_epochs=2,
        epochs=20,
        batch=64,
        augment=False,
        dropout=0.0,
    ),
    # Appendix G.2: 827,530 parameters on CIFAR-10's images.
    "paper": Settings(),
}
