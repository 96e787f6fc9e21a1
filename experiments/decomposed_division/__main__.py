"""``python -m experiments.decomposed_division``: one run; `study` compares many."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.decomposed_division.presets import PRESETS, Settings
from experiments.decomposed_division.train import train
from experiments.kit.command import exit_status
from experiments.kit.history import print_run, write_summary
from experiments.kit.options import Options, parse_options
from experiments.kit.run_folder import is_finished, open_run_folder

NAME = "decomposed_division"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    options = parse(argv)
    return exit_status(NAME, lambda: run(options))


def parse(argv: Sequence[str] | None) -> Options[Settings]:
    """The options of this experiment."""
    return parse_options(
        PRESETS,
        prog=f"python -m experiments.{NAME}",
        description="Train a two-layer Transformer on a / b mod p, with layers kept as U Sigma Vh.",
        default_preset="cpu",
        argv=argv,
    )


def run(options: Options[Settings]) -> Path:
    """One run, or what is left of it; prints its results and returns its folder."""
    folder = open_run_folder(NAME, options)
    if is_finished(folder):
        print(f"{folder} is finished; --again or --fresh trains it again\n")
    else:
        write_summary(NAME, options, folder, train(options, folder))
    print_run(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
