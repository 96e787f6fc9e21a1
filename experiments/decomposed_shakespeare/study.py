"""``python -m experiments.decomposed_shakespeare.study``: the baseline and decomposed layers.

Figures 29 and 30 of the paper: each group of layers, and all of them, at 12.5, 25, 50, 75 and 100 %
of its ranks, trained on the first 90, 50 and 10 % of a text. The whole of it at full size:

  python -m experiments.decomposed_shakespeare.study --preset paper --arms all --device cuda \\
      --data FOLDER_WITH_INPUT_TXT
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from experiments.decomposed_shakespeare.__main__ import NAME, parse
from experiments.decomposed_shakespeare.claims import FRACTIONS, arm, check_claims
from experiments.decomposed_shakespeare.presets import GROUPS, PRESETS
from experiments.kit.arms import Arm, Outcome
from experiments.kit.figures import Figures, accuracy_figure, stable_rank_figure
from experiments.kit.rank_table import rank_table_figure
from experiments.kit.study_command import study_command

RANKS = (0.125, 0.25, 0.5, 0.75, 1.0)
SEEDS = {"cpu": 1, "paper": 3}


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
    """For each share of the text the baseline and every rank of every group; or every rank of all
    layers, and with less of the text those ranks that the claims need."""
    arms = []
    for fraction in FRACTIONS:
        ranks = RANKS if which == "all" or fraction == FRACTIONS[0] else (0.125, 0.5)
        groups = GROUPS if which == "all" else ["all"]
        pairs = [(group, rank) for group in groups for rank in ranks]
        arms += [arm(layers, rank, fraction) for layers, rank in [("none", 1.0), *pairs]]
    return arms


def figures_of(outcomes: Mapping[str, Outcome]) -> Figures:
    """Tables of accuracies and gaps; for each share of the text accuracy against steps; stable
    ranks of all layers with most of the text."""
    panels = {}
    for fraction in FRACTIONS:
        members = {
            label: outcome
            for label, outcome in outcomes.items()
            if outcome.arm.overrides["train_fraction"] == fraction
        }
        if not all(outcome.arm.is_baseline for outcome in members.values()):
            panels[f"{fraction:.0%} of the text"] = members
    figures = {"rank_table": rank_table_figure(panels)} if panels else {}
    for title, members in panels.items():
        figures[f"accuracy_{title.split('%')[0]}"] = accuracy_figure(members)
    base = outcomes.get(arm("none", 1.0, FRACTIONS[0]).label)
    others = [outcomes.get(arm("all", rank, FRACTIONS[0]).label) for rank in (1.0, 0.5, 0.125)]
    if base is not None:
        figures["stable_ranks"] = stable_rank_figure(base, [o for o in others if o is not None])
    return figures


if __name__ == "__main__":
    sys.exit(main())
