"""Named settings of the character model; every field is a command line option."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.kit.settings import TrainingSettings, option

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


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """What one run is made of. The defaults are those of the paper, appendix G.1.

    The paper says neither how the weights start nor which characters are measured; those are
    Karpathy's start, and windows spread evenly over each part of the text.
    """

    decompose: str = option("none", f"layers kept as U Sigma Vh: {_CHOICES}")
    train_fraction: float = option(0.9, "share of the text, from its start, that is trained on")

    d_model: int = option(384, "width of the residual stream")
    layers: int = option(6, "blocks of attention and feed forward")
    heads: int = option(6, "attention heads, each d_model / heads wide")
    length: int = option(256, "characters of a window")
    initial_deviation: float = option(0.02, "standard deviation of the weights at the start")
    dropout: float = option(0.2, "on attention weights, and on what is added to the stream")

    learning_rate: float = option(3e-4, "Adam's learning rate")
    batch_size: int = option(64, "windows of an optimizer step")
    max_steps: int = option(5_000, "optimizer steps")
    measured_windows: int = option(400, "windows of each part that accuracies are taken on")

    def __post_init__(self) -> None:
        """Refuse settings that no run can be made of."""
        super().__post_init__()
        if self.decompose not in ("none", *GROUPS):
            raise ValueError(f"decompose is {self.decompose!r}; expected {_CHOICES}")
        for name in ("d_model", "layers", "heads", "length", "measured_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model is {self.d_model} and heads is {self.heads}; "
                "expected d_model to be a multiple of heads"
            )
        if not 0 < self.train_fraction < 1:
            raise ValueError(
                f"train_fraction is {self.train_fraction}; expected more than 0 and less than 1"
            )
        if self.initial_deviation <= 0:
            raise ValueError(f"initial_deviation is {self.initial_deviation}; expected more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected at least 0 and less than 1")


def ranks(settings: Settings) -> dict[str, float]:
    """Patterns of layers' names -> the share of their full rank, for `decompose_model`."""
    return dict.fromkeys(GROUPS.get(settings.decompose, []), settings.rank)


PRESETS = {
    # A small model and, without --data, Python's own help as its text: seconds a run on one core.
    # With the paper's start, so small a model learns little within its steps.
    "cpu": Settings(
        d_model=48,
        layers=2,
        heads=2,
        length=32,
        initial_deviation=0.1,
        dropout=0.0,
        learning_rate=2e-3,
        batch_size=32,
        max_steps=800,
        measured_windows=128,
    ),
    # Appendix G.1: 10,788,929 parameters where the text has 65 characters.
    "paper": Settings(),
}
