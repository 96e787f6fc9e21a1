"""Named settings of the Vision Transformer; every field is a command line option."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from experiments.kit.settings import TrainingSettings, option

_REST = [
    "positions",
    *(f"blocks.*.attention.{part}" for part in ("query", "key", "value", "projection")),
    "blocks.*.fc2",
    "pre_output",
]

# What the paper decomposes together (Figures 31 and 32), as patterns of layers' names. The layer
# of the patches is dense in all of them.
GROUPS = {
    "positions": ["positions"],
    "attention": [f"blocks.*.attention.{part}" for part in ("query", "key", "value")],
    "projection": ["blocks.*.attention.projection"],
    "fc1": ["blocks.*.fc1"],
    "fc2": ["blocks.*.fc2"],
    "pre_output": ["pre_output"],
    "output": ["output"],
    "all": [*_REST, "blocks.*.fc1", "output"],
    "all_but_fc1": [*_REST, "output"],
    "all_but_output": [*_REST, "blocks.*.fc1"],
    "all_but_fc1_and_output": _REST,
}
_CHOICES = ", ".join(["none", *GROUPS])


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """What one run is made of. The defaults are those of the paper, appendix G.2.

    Its epochs are steps here: 100 of 390 whole batches of CIFAR-10's 50,000 images.
    """

    decompose: str = option("none", f"layers kept as U Sigma Vh: {_CHOICES}")
    images: Literal["digits", "mnist", "cifar10"] = option(
        "cifar10", "scikit-learn's digits, or what the folder of --data holds"
    )
    augment: bool = option(True, "shift, flip and change the training images")

    d_model: int = option(128, "width of the residual stream; feed forward is twice as wide")
    layers: int = option(6, "blocks of attention and feed forward")
    heads: int = option(4, "attention heads, each d_model / heads wide")
    patch: int = option(4, "side of a patch, in pixels")
    initial_deviation: float = option(0.02, "standard deviation of the weights at the start")
    dropout: float = option(0.1, "on the embedded patches, and on what is added to the stream")

    learning_rate: float = option(5e-4, "Adam's highest learning rate")
    last_learning_rate: float = option(1e-5, "the learning rate that the cosine ends at")
    warmup_steps: int = option(3_900, "optimizer steps of linear warm-up")
    max_steps: int = option(39_000, "optimizer steps")
    batch_size: int = option(128, "images of an optimizer step")

    def __post_init__(self) -> None:
        """Refuse settings that no run can be made of."""
        super().__post_init__()
        if self.decompose not in ("none", *GROUPS):
            raise ValueError(f"decompose is {self.decompose!r}; expected {_CHOICES}")
        for name in ("d_model", "layers", "heads", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} of {self.max_steps} steps; "
                "expected at least 0 and fewer than all"
            )
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model is {self.d_model} and heads is {self.heads}; "
                "expected d_model to be a multiple of heads"
            )
        if self.initial_deviation <= 0:
            raise ValueError(f"initial_deviation is {self.initial_deviation}; expected more than 0")
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


# With the weights of the paper's start, so small a network stays at a tenth for most of its steps.
_REDUCED = Settings(
    images="digits",
    augment=False,
    d_model=32,
    layers=2,
    patch=2,
    initial_deviation=0.15,
    learning_rate=2e-3,
    warmup_steps=80,
    max_steps=800,
    batch_size=32,
)

PRESETS = {
    # Digits of 8 × 8 pixels: seconds a run on one core.
    "cpu": _REDUCED,
    # The same of 28 × 28 pixels, from a folder: MNIST or the 10,000 images of its test split.
    "mnist": replace(_REDUCED, images="mnist", patch=7),
    # Appendix G.2: 827,530 parameters on CIFAR-10's images.
    "paper": Settings(),
}

# What each kind of images reads from the folder of --data.
READS = {"digits": None, "mnist": "MNIST", "cifar10": "CIFAR-10"}
