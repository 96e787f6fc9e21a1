"""``python -m experiments.decomposed_mnist.study``: baseline and decomposed layers, compared.

The presets ``cpu`` and ``paper`` make the table of weight decays (appendix E), the ``grokking-``
ones that of induced grokking (appendix F). On two cores ``cpu`` takes some ten minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.decomposed_mnist.__main__ import NAME, check_data, parse
from experiments.decomposed_mnist.decay import decay_arms, decay_claims, decay_figures
from experiments.decomposed_mnist.grokking import (
    grokking_arms,
    grokking_claims,
    grokking_figures,
)
from experiments.decomposed_mnist.presets import PRESETS
from experiments.kit.command import exit_status
from experiments.kit.study import Study, run_study, study_parser

# The paper's table is a mean of 10 networks, its figures of grokking of 3.
SEEDS = {"paper": 10}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    parser = study_parser(NAME, __doc__ or "", list(PRESETS))
    parser.add_argument(
        "--arms",
        choices=["claims", "all"],
        default="claims",
        help="those that decide the claims, or every layer and rank of the paper's figures "
        "(default: claims)",
    )
    chosen = parser.parse_args(argv)
    groks = chosen.preset.startswith("grokking")
    study = Study(
        name=NAME,
        parse=parse,
        preset=chosen.preset,
        arms=(grokking_arms if groks else decay_arms)(chosen.arms),
        seeds=range(chosen.seeds or SEEDS.get(chosen.preset, 3)),
        out=chosen.out,
        data=chosen.data,
        device=chosen.device,
        jobs=chosen.jobs,
    )
    failed = 0

    def work() -> None:
        nonlocal failed
        check_data(study.preset, study.data)
        claims = grokking_claims if groks else decay_claims
        failed = run_study(study, claims, grokking_figures if groks else decay_figures)

    return exit_status(NAME, work) or failed


if __name__ == "__main__":
    sys.exit(main())
