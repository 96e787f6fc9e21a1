"""``python -m experiments.modular_addition``: train, then table, claims, figures and report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.kit.command import exit_status
from experiments.kit.options import Options, parse_options
from experiments.kit.run_folder import is_finished, open_run_folder
from experiments.modular_addition.presets import PRESETS, Settings
from experiments.modular_addition.results import print_results, write_results
from experiments.modular_addition.train import train

NAME = "modular_addition"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    options = parse(argv)
    return exit_status(NAME, lambda: run(options))


def parse(argv: Sequence[str] | None) -> Options[Settings]:
    """The options of this experiment."""
    return parse_options(
        PRESETS,
        prog=f"python -m experiments.{NAME}",
        description="Train a one-layer Transformer on (i + j) mod p until it groks, "
        "with the spectra of all its weights at every step.",
        default_preset="demo",
        argv=argv,
    )


def run(options: Options[Settings]) -> Path:
    """One run, or what is left of it; prints its results and returns its folder."""
    folder = open_run_folder(NAME, options)
    if is_finished(folder):
        print(f"{folder} is finished; --again or --fresh trains it again\n")
    else:
        seconds = train(options, folder)
        write_results(options, folder, seconds)
    print_results(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
