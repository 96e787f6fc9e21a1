"""Named settings of the modular addition experiment; every field is a command line option."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What one run is made of. The defaults are those of Nanda et al. (2023), section 3 and C."""

    p: int = _option(113, "the modulus; pairs are (i, j) with 0 <= i, j < p")
    train_fraction: float = _option(0.3, "share of the p^2 ordered pairs that is trained on")

    d_model: int = _option(128, "width of the residual stream")
    heads: int = _option(4, "attention heads, each d_model / heads wide")
    d_mlp: int = _option(512, "width of the MLP's hidden layer")
    positions: Literal["learned", "sinusoidal"] = _option("learned", "position encoding")
    extra_biases: bool = _option(False, "biases in the attention and the unembedding too")

    learning_rate: float = _option(1e-3, "AdamW's learning rate")
    weight_decay: float = _option(1.0, "AdamW's decoupled weight decay, on all parameters")
    beta1: float = _option(0.9, "AdamW's first decay rate")
    beta2: float = _option(0.98, "AdamW's second decay rate")
    warmup_steps: int = _option(10, "linear warm-up of the learning rate, in steps; 0 for none")

    max_steps: int = _option(50_000, "optimizer steps after which the run ends in any case")
    stop_when_generalized: bool = _option(False, "end as soon as validation accuracy is 1")
    validate_every: int = _option(10, "optimizer steps between two validations")
    monitor_every: int = _option(1, "optimizer steps between two spectral frames")
    checkpoint_every: int = _option(250, "optimizer steps between two checkpoints")

    def __post_init__(self) -> None:
        """Refuse settings that no run can be made of."""
        positive = ("p", "d_model", "heads", "d_mlp", "max_steps")
        cadences = ("validate_every", "monitor_every", "checkpoint_every")
        for name in (*positive, *cadences):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; expected at least 0")
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model is {self.d_model} and heads is {self.heads}; "
                "expected d_model to be a multiple of heads"
            )
        if not 1 <= int(self.train_fraction * self.p**2) < self.p**2:
            raise ValueError(
                f"train_fraction is {self.train_fraction} and p is {self.p}; "
                "expected a fraction that leaves at least one pair on either side"
            )


PAPER = Settings()

REDUCED = Settings(p=59, train_fraction=0.5, max_steps=4_000)

PRESETS = {
    # Groks within 2,000 to 3,000 steps, depending on the seed and on the machine's arithmetic: two
    # minutes on two cores.
    "demo": replace(REDUCED, stop_when_generalized=True),
    # The same without an early end: what becomes of the ranks after generalisation.
    "cpu": REDUCED,
    # Nanda et al. (2023): 226,816 parameters, 3,830 of 12,769 pairs.
    "paper": PAPER,
    # Yunis et al. (2024): the same with sinusoidal positions: 227,058 parameters, 40,000 epochs,
    # spectra every 100 epochs.
    "yunis": replace(
        PAPER,
        positions="sinusoidal",
        extra_biases=True,
        warmup_steps=0,
        max_steps=40_000,
        monitor_every=100,
    ),
}
