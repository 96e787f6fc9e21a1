"""Named settings of the MNIST experiments; every field is a command line option."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from experiments.kit.settings import TrainingSettings, option


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """What one run is made of. The defaults are those of the paper's appendix E, without decay."""

    decompose: Literal["none", "layer1", "layer2", "layer3", "layers23", "all"] = option(
        "none", "layers kept as U Sigma Vh"
    )
    batch_size: int = option(256, "images of one optimizer step")
    # 25 epochs of 60,000 images in batches of 256.
    max_steps: int = option(5_875, "optimizer steps after which the run ends in any case")
    checkpoint_every: int = option(2_000, "optimizer steps between two checkpoints")

    train_images: int | None = option(None, "how many training images are used; none: all")
    width: int = option(256, "width of the two hidden layers")
    initial_scale: float = option(1.0, "factor on all initial parameters, biases too")

    loss: Literal["cross_entropy", "mse"] = option(
        "cross_entropy", "mse is that of logits against one-hot labels"
    )
    optimizer: Literal["sgd", "adamw"] = option("sgd", "sgd has coupled weight decay")
    momentum: float = option(0.9, "of sgd")
    weight_decay: float = option(0.0, "on all parameters, biases too, as in the paper")
    decay_factors: bool = option(True, "decay U, Sigma and Vh too, as the paper does")

    def __post_init__(self) -> None:
        """Refuse settings that no run can be made of."""
        super().__post_init__()
        if self.width < 1:
            raise ValueError(f"width is {self.width}; expected at least 1")
        if self.train_images is not None and self.train_images < 1:
            raise ValueError(f"train_images is {self.train_images}; expected at least 1, or none")
        if self.initial_scale <= 0:
            raise ValueError(f"initial_scale is {self.initial_scale}; expected more than 0")
        for name in ("momentum", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0")


PAPER = Settings()

GROKKING_PAPER = Settings(
    batch_size=200,
    max_steps=100_000,
    checkpoint_every=10_000,
    train_images=1_000,
    width=200,
    initial_scale=8.0,
    loss="mse",
    optimizer="adamw",
    weight_decay=0.01,
)

# Weights shrink by exp(-rate * decay * steps), so ten times the decay needs a tenth of the steps.
GROKKING_REDUCED = replace(
    GROKKING_PAPER, max_steps=10_000, checkpoint_every=2_500, weight_decay=0.1
)

PRESETS = {
    # Appendix E on any images: the same network and as many steps, however few images there are.
    "cpu": PAPER,
    # Appendix E: MNIST.
    "paper": PAPER,
    # Appendix F on any images. Digits of 8 x 8 pixels generalise from fewer of them.
    "grokking-cpu": replace(GROKKING_REDUCED, train_images=400),
    # Appendix F in a tenth of the steps: MNIST.
    "grokking-mnist": GROKKING_REDUCED,
    # Appendix F: MNIST.
    "grokking-paper": GROKKING_PAPER,
}

NEED_MNIST = frozenset({"paper", "grokking-mnist", "grokking-paper"})
