"""The command of a study whose arms are those of the claims, or all of the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from experiments.kit.arms import Arm, Outcome
from experiments.kit.claims import Claim
from experiments.kit.command import exit_status
from experiments.kit.figures import Figures
from experiments.kit.options import Options
from experiments.kit.study import Study, run_study, study_parser

SettingsT = TypeVar("SettingsT")
Outcomes = Mapping[str, Outcome]


def study_command(
    argv: Sequence[str] | None,
    *,
    name: str,
    description: str,
    presets: Mapping[str, SettingsT],
    parse: Callable[[Sequence[str]], Options[Any]],
    seeds: Mapping[str, int],
    arms: Callable[[SettingsT, str], Sequence[Arm]],
    claims: Callable[[SettingsT, Outcomes], list[Claim]],
    figures: Callable[[SettingsT, Outcomes], Figures],
) -> int:
    """Read the options, run the study, print its results; the process's exit status.

    Args:
        argv: the command line; the process's own if None.
        name: of the experiment.
        description: what ``--help`` says.
        presets: name -> settings.
        parse: reads a command line of the experiment; raises ``ValueError`` for data that is
            missing.
        seeds: preset -> how many seeds, where ``--seeds`` does not say.
        arms: the preset's settings and ``"claims"`` or ``"all"`` -> the arms to train.
        claims: the settings and the arms by label -> the claims that they test.
        figures: the settings and the arms by label -> name -> figure.
    """
    parser = study_parser(name, description, list(presets))
    parser.add_argument(
        "--arms",
        choices=["claims", "all"],
        default="claims",
        help="those that decide the claims, or every group of layers at every rank of the paper's "
        "figures (default: claims)",
    )
    chosen = parser.parse_args(argv)
    settings = presets[chosen.preset]
    study = Study(
        name=name,
        parse=parse,
        preset=chosen.preset,
        arms=arms(settings, chosen.arms),
        seeds=range(seeds[chosen.preset] if chosen.seeds is None else chosen.seeds),
        out=chosen.out,
        data=chosen.data,
        device=chosen.device,
        jobs=chosen.jobs,
    )
    failed: list[int] = []

    def work() -> None:
        failed.append(
            run_study(
                study,
                lambda found: claims(settings, found),
                lambda found: figures(settings, found),
            )
        )

    return exit_status(name, work) or failed[0]
