"""``python -m experiments.decomposed_vit``: one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.decomposed_vit.presets import PRESETS, READS, Settings
from experiments.decomposed_vit.task import make_task
from experiments.kit.command import exit_status
from experiments.kit.options import Options, parse_options
from experiments.kit.supervised import check_data, run_supervised

NAME = "decomposed_vit"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    return exit_status(NAME, lambda: run_supervised(NAME, parse(argv), make_task))


def parse(argv: Sequence[str] | None) -> Options[Settings]:
    """The options of this experiment. Raises what `check_data` does."""
    options = parse_options(
        PRESETS,
        prog=f"python -m experiments.{NAME}",
        description="Train a small Vision Transformer, with groups of its layers kept as "
        "U Sigma Vh. --data is a folder with MNIST or CIFAR-10, for the presets that need one.",
        default_preset="cpu",
        argv=argv,
    )
    reads = READS[options.settings.images]
    check_data(options, reads, needed=reads is not None)
    return options


if __name__ == "__main__":
    sys.exit(main())
