"""``python -m experiments.decomposed_shakespeare``: one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.decomposed_shakespeare.presets import PRESETS, Settings
from experiments.decomposed_shakespeare.task import make_task
from experiments.kit.command import exit_status
from experiments.kit.options import Options, parse_options
from experiments.kit.supervised import run_supervised

NAME = "decomposed_shakespeare"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    options = parse(argv)
    return exit_status(NAME, lambda: run_supervised(NAME, options, make_task))


def parse(argv: Sequence[str] | None) -> Options[Settings]:
    """The options of this experiment."""
    return parse_options(
        PRESETS,
        prog=f"python -m experiments.{NAME}",
        description="Train a Transformer on the characters of a text, with groups of its layers "
        "kept as U Sigma Vh. --data is a folder with input.txt; without it, Python's own help.",
        default_preset="cpu",
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
