"""``python -m experiments.decomposed_division.study``: the baseline beside decomposed layers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from experiments.decomposed_division.__main__ import NAME, parse
from experiments.decomposed_division.claims import ALL, check_claims
from experiments.decomposed_division.model import GROUPS
from experiments.decomposed_division.presets import PRESETS
from experiments.kit.arms import Arm, Outcome, baseline, decomposed
from experiments.kit.command import exit_status
from experiments.kit.figures import Figures, accuracy_figure, rank_figure, stable_rank_figure
from experiments.kit.study import Study, run_study, study_parser

# Section 4: about 12.5, 25, 50, 75 and 100 % of the full rank; all five ranks of the positions.
RANKS = (1.0, 0.75, 0.5, 0.25, 0.125)
POSITION_RANKS = (1.0, 0.8, 0.6, 0.4, 0.2)
SEEDS = {"cpu": 3}
PAPERS_SEEDS = 5

EPILOG = """\
The paper at full size on one GPU, where every optimizer step is one CUDA graph:

  python -m experiments.decomposed_division.study --preset paper80 --device cuda
  python -m experiments.decomposed_division.study --preset paper65 --device cuda

--layers embedding positions attention feed_forward output all   is Figures 3 to 8,
--layers qkv proj fc1 fc2                                        Figures 12 to 15.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    parser = study_parser(
        NAME, "Steps to a 1 % generalisation gap, with and without decomposed layers.",
        list(PRESETS),
    )  # fmt: skip
    parser.epilog = EPILOG
    parser.add_argument("--layers", nargs="+", choices=[name for name in GROUPS if name != "none"],
                        metavar="NAME", help="decompose these groups of layers, each at the "
                        "paper's five ranks (default: what the claims need)")  # fmt: skip
    given = parser.parse_args(argv)
    study = Study(
        name=NAME,
        parse=parse,
        preset=given.preset,
        arms=arms_of(given.preset, given.layers),
        seeds=range(given.seeds or SEEDS.get(given.preset, PAPERS_SEEDS)),
        out=given.out,
        data=given.data,
        device=given.device,
        jobs=given.jobs,
    )
    settings, failed = PRESETS[given.preset], 0

    def work() -> None:
        nonlocal failed
        failed = run_study(study, lambda found: check_claims(settings, found), figures_of)

    return exit_status(NAME, work) or failed


def arms_of(preset: str, layers: Sequence[str] | None = None) -> list[Arm]:
    """The baseline, and these groups of layers at every rank; or what the claims need."""
    if layers:
        return [baseline(), *(decomposed(n, rank) for n in layers for rank in ranks_of(n))]
    if preset == "cpu":
        # At 25 % of the rank training accuracy is a third after 3,000 steps, and the positions
        # take as long as the baseline: neither is worth minutes of the quick study.
        return [baseline(), *(decomposed("all", rank) for rank in RANKS[:3])]
    every = [decomposed("all", rank) for rank in RANKS]
    return [baseline(), *every, decomposed("attention", 0.125), decomposed("positions", 1.0)]


def ranks_of(layers: str) -> Sequence[float]:
    """The ranks at which the paper decomposes a group of layers."""
    return POSITION_RANKS if layers == "positions" else RANKS


def figures_of(outcomes: Mapping[str, Outcome]) -> Figures:
    """Accuracy against steps, stable ranks of all layers, accuracy against rank."""
    figures = {"accuracy": accuracy_figure(outcomes), "ranks": rank_figure(outcomes)}
    every = [outcome for outcome in outcomes.values() if outcome.arm.series == "all"]
    if "baseline" in outcomes and ALL in outcomes:
        figures["stable_ranks"] = stable_rank_figure(outcomes["baseline"], every)
    return figures


if __name__ == "__main__":
    sys.exit(main())
