"""``python -m experiments.decomposed_vit.study``: the baseline and decomposed layers.

Figures 31 and 32 of the paper: each group of layers, all of them, and all but fc1 and the output,
at 12.5, 25, 50, 75 and 100 % of their ranks. The whole of it at full size:

  python -m experiments.decomposed_vit.study --preset paper --arms all --device cuda \\
      --data FOLDER_OF_CIFAR10
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from experiments.decomposed_vit.__main__ import NAME, parse
from experiments.decomposed_vit.claims import check_claims
from experiments.decomposed_vit.presets import GROUPS, PRESETS
from experiments.kit.arms import Arm, Outcome, baseline, decomposed
from experiments.kit.figures import Figures, accuracy_figure, stable_rank_figure
from experiments.kit.rank_table import rank_table_figure
from experiments.kit.study_command import study_command

RANKS = (0.125, 0.25, 0.5, 0.75, 1.0)
SEEDS = {"cpu": 1, "mnist": 1, "paper": 3}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    return study_command(
        argv,
        name=NAME,
        description=__doc__ or "",
        presets=PRESETS,
        parse=parse,
        seeds=SEEDS,
        arms=lambda _, which: arms_of(which),
        claims=check_claims,
        figures=lambda _, found: figures_of(found),
    )


def arms_of(which: str) -> list[Arm]:
    """The baseline and every rank of every group; or all layers at every rank, every single group
    at the lowest, and what else the claims need."""
    pairs = [(group, rank) for group in GROUPS for rank in RANKS]
    if which == "claims":
        ends = {("attention", 1.0), ("all_but_fc1_and_output", 0.125)}
        pairs = [
            (group, rank)
            for group, rank in pairs
            if group == "all"
            or (group, rank) in ends
            or (rank == RANKS[0] and not group.startswith("all"))
        ]
    return [baseline(), *(decomposed(group, rank) for group, rank in pairs)]


def figures_of(outcomes: Mapping[str, Outcome]) -> Figures:
    """Tables of accuracies and gaps, accuracy against steps, stable ranks of all layers."""
    figures = {"accuracy": accuracy_figure(outcomes)}
    if not all(outcome.arm.is_baseline for outcome in outcomes.values()):
        figures["rank_table"] = rank_table_figure({"": outcomes})
    base = outcomes.get(baseline().label)
    others = [outcomes.get(decomposed("all", rank).label) for rank in (1.0, 0.5, 0.125)]
    if base is not None:
        figures["stable_ranks"] = stable_rank_figure(base, [o for o in others if o is not None])
    return figures


if __name__ == "__main__":
    sys.exit(main())
