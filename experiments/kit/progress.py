"""The progress bar of a run."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

from tqdm import tqdm

ProgressBar: TypeAlias = "tqdm[Any]"


def progress_bar(first_step: int, last_step: int, description: str) -> ProgressBar:
    """A bar over steps ``first_step`` to ``last_step``, on stderr.

    On a terminal it is redrawn five times a second; in a log file, where every redraw is another
    line, every ten seconds.
    """
    return tqdm(
        total=last_step,
        initial=first_step,
        desc=description,
        unit="step",
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        maxinterval=0.2 if sys.stderr.isatty() else 10.0,
        dynamic_ncols=True,
        bar_format="{desc} {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}] {postfix}",
    )
