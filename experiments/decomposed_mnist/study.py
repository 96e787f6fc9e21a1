"""``python -m experiments.decomposed_mnist.study``: baseline and decomposed layers, compared.

The presets cpu and paper make the table of weight decays (appendix E of the paper), the grokking-
ones the figures of grokking that is induced (appendix F). On two cores cpu and grokking-cpu take
some five minutes for each seed. The whole of them at full size:

  python -m experiments.decomposed_mnist.study --preset paper --arms all --device cuda \\
      --data FOLDER_OF_MNIST
  python -m experiments.decomposed_mnist.study --preset grokking-paper --arms all --device cuda \\
      --data FOLDER_OF_MNIST
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from experiments.decomposed_mnist.__main__ import NAME, parse
from experiments.decomposed_mnist.decay import decay_arms, decay_claims
from experiments.decomposed_mnist.decay_figures import decay_figures
from experiments.decomposed_mnist.grokking import grokking_arms, grokking_claims, grokking_figures
from experiments.decomposed_mnist.presets import PRESETS, Settings
from experiments.kit.arms import Arm, Outcome
from experiments.kit.claims import Claim
from experiments.kit.figures import Figures
from experiments.kit.study_command import study_command

# The paper's table is a mean over 10 networks, its figures of grokking over 3.
SEEDS = {**dict.fromkeys(PRESETS, 3), "paper": 10}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    return study_command(
        argv,
        name=NAME,
        description=__doc__ or "",
        presets=PRESETS,
        parse=parse,
        seeds=SEEDS,
        arms=arms_of,
        claims=check_claims,
        figures=figures_of,
    )


def arms_of(settings: Settings, which: str) -> list[Arm]:
    """Those that decide the claims, or all of the paper's."""
    return grokking_arms(which) if groks(settings) else decay_arms(which)


def check_claims(settings: Settings, outcomes: Mapping[str, Outcome]) -> list[Claim]:
    """What the paper says of these arms."""
    return grokking_claims(outcomes) if groks(settings) else decay_claims(outcomes)


def figures_of(settings: Settings, outcomes: Mapping[str, Outcome]) -> Figures:
    """The paper's figures of these arms."""
    return grokking_figures(outcomes) if groks(settings) else decay_figures(outcomes)


def groks(settings: Settings) -> bool:
    """Whether a preset is one of those whose large initial weights make the network grok."""
    return settings.initial_scale > 1


if __name__ == "__main__":
    sys.exit(main())
