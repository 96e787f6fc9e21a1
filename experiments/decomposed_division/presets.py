"""Named settings of the decomposed division experiment; every field is a command line option."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from experiments.kit.settings import TrainingSettings, option


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """What one run is made of. The defaults are the paper's, section 4, at half of the data."""

    decompose: Literal[
        "none",
        "embedding",
        "positions",
        "attention",
        "qkv",
        "proj",
        "feed_forward",
        "fc1",
        "fc2",
        "output",
        "all",
        "everything",
    ] = option(
        "none", "layers kept as U Sigma Vh; 'all' leaves the positions out, as the paper does"
    )
    max_steps: int = option(1_000_000, "optimizer steps after which the run ends in any case")
    checkpoint_every: int = option(10_000, "optimizer steps between two checkpoints")

    p: int = option(97, "the modulus, a prime; equations are a / b = c with 0 < b < p")
    train_fraction: float = option(0.5, "share of the p (p - 1) equations that is trained on")
    train_measured: int | None = option(
        None, "how many trained equations, always the same, are measured; none: all"
    )

    d_model: int = option(128, "width of the residual stream")
    heads: int = option(4, "attention heads, each d_model / heads wide")
    layers: int = option(2, "decoder blocks")
    d_mlp: int = option(512, "width of the feed-forward blocks")

    weight_decay: float = option(0.0, "AdamW's decoupled weight decay; factors have none")
    beta1: float = option(0.9, "AdamW's first decay rate")
    beta2: float = option(0.98, "AdamW's second decay rate")
    warmup_steps: int = option(10, "linear warm-up of the learning rate, in steps; 0 for none")

    def __post_init__(self) -> None:
        """Refuse settings that no run can be made of."""
        super().__post_init__()
        for name in ("d_model", "heads", "layers", "d_mlp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.p < 3 or any(self.p % q == 0 for q in range(2, int(self.p**0.5) + 1)):
            raise ValueError(f"p is {self.p}; expected an odd prime, so that b has an inverse")
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model is {self.d_model} and heads is {self.heads}; "
                "expected d_model to be a multiple of heads"
            )
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} and weight_decay {self.weight_decay}; "
                "expected at least 0"
            )
        count = int(self.train_fraction * self.p * (self.p - 1))
        if not 1 <= count < self.p * (self.p - 1):
            raise ValueError(
                f"train_fraction is {self.train_fraction} and p is {self.p}; "
                "expected a fraction that leaves at least one equation on either side"
            )
        if self.train_measured is not None and not 1 <= self.train_measured <= count:
            raise ValueError(
                f"train_measured is {self.train_measured}; expected 1 to {count}, the number of "
                "trained equations"
            )


PAPER = Settings()

PRESETS = {
    # The network, the modulus and the optimizer of the paper at 80 % of the equations, up to the
    # step that closes the gap.
    "cpu": replace(
        PAPER,
        train_fraction=0.8,
        max_steps=10_000,
        checkpoint_every=500,
        stop_at_gap=True,
        train_measured=1024,
    ),
    # 50 %: a million steps.
    "paper": PAPER,
    "paper65": replace(PAPER, train_fraction=0.65, max_steps=100_000),
    "paper80": replace(PAPER, train_fraction=0.8, max_steps=10_000, checkpoint_every=1_000),
}
