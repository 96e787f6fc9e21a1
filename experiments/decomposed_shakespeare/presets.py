"""Named settings of the character model; every field is a command line option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# What the paper decomposes together, as patterns of layers' names.
GROUPS = {
    "embedding": ["embedding"],
    "positions": ["positions"],
    "attention": [f"blocks.*.attention.{part}.*" for part in ("query", "key", "value")],
    "projection": ["blocks.*.attention.projection"],
    "feed_forward": ["blocks.*.mlp_in", "blocks.*.mlp_out"],
    "output": ["output"],
    "all": ["*"],
}
_CHOICES = ", ".join(["none", *GROUPS])
RANKS = (0.125, 0.25, 0.5, 0.75, 1.0)


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What one run is made of. The defaults are those of the paper, appendix G.1.

    The paper says neither how the weights start nor which characters are measured; those are
    Karpathy's start, and windows spread evenly over each part of the text.
    """

    decompose: str = _option("none", f"layers kept as U Sigma Vh: {_CHOICES}")
    rank: float = _option(1.0, "their rank, as a share of the full one")
    train_fraction: float = _option(0.9, "share of the text, from its start, that is trained on")

    d_model: int = _option(384, "width of the residual stream")
    layers: int = _option(6, "blocks of attention and feed forward")
    heads: int = _option(6, "attention heads, each d_model / heads wide")
    length: int = _option(256, "characters of a window")
    dropout: float = _option(0.2, "on attention weights, and on what is added to the stream")

    learning_rate: float = _option(3e-4, "Adam's learning rate")
    batch: int = _option(64, "windows of an optimizer step")
    max_steps: int = _option(5_000, "optimizer steps")
    measured_windows: int = _option(400, "windows of each part that accuracies are taken on")
    checkpoint_every: int = _option(500, "optimizer steps between two checkpoints")

    def __post_init__(self) -> None:
        """Refuse settings that no run can be made of."""
        for name in ("d_model", "layers", "heads", "length", "batch", "max_steps",
                     "measured_windows", "checkpoint_every"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model is {self.d_model} and heads is {self.heads}; "
                "expected d_model to be a multiple of heads"
            )
        if self.decompose not in ("none", *GROUPS):
            raise ValueError(f"decompose is {self.decompose!r}; expected {_CHOICES}")
        if not 0 < self.rank <= 1:
            raise ValueError(f"rank is {self.rank}; expected a share, more than 0 and at most 1")
        if not 0 < self.train_fraction < 1:
            raise ValueError(
                f"train_fraction is {self.train_fraction}; expected more than 0 and less than 1"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected at least 0 and less than 1")


PRESETS = {
    # Character accuracies of a small model on a small text; seconds a run on one core.
    "cpu": Settings(
        d_model=64,
        layers=2,
        heads=4,
        length=64,
        dropout=0.0,
        learning_rate=3e-3,
        batch=16,
        max_steps=500,
        measured_windows=100,
    ),
    # Appendix G.1: 10,788,929 parameters where the text has 65 characters.
    "paper": Settings(),
}
