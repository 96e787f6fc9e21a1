"""``python -m experiments.decomposed_shakespeare``: one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.decomposed_shakespeare.presets import PRESETS, Settings
from experiments.decomposed_shakespeare.task import make_task
from experiments.kit.command import exit_status
from experiments.kit.options import Options, parse_options
from experiments.kit.supervised import check_data, run_supervised

NAME = "decomposed_shakespeare"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    return exit_status(NAME, lambda: run_supervised(NAME, parse(argv), make_task))


def parse(argv: Sequence[str] | None) -> Options[Settings]:
    """The options of this experiment. Raises what `check_data` does."""
    options = parse_options(
        PRESETS,
        prog=f"python -m experiments.{NAME}",
        description="Train a Transformer on the characters of a text, with groups of its layers "
        "kept as U Sigma Vh. --data is a folder with input.txt; without it, Python's own help.",
        default_preset="cpu",
        argv=argv,
    )
    check_data(options, "input.txt", needed=options.preset == "paper")
    return options


if __name__ == "__main__":
    sys.exit(main())
