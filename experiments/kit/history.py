"""A finished supervised run: its ``summary.json``, and its curves read back as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spectral_monitor.run.reader import load_run
from spectral_monitor.step.frame import Array

from experiments.kit.claims import json_value
from experiments.kit.gap import closed_at
from experiments.kit.machine import machine
from experiments.kit.options import Options
from experiments.kit.run_folder import SUMMARY, write_json
from experiments.kit.settings import TrainingSettings
from experiments.kit.training import Training, parameter_count

_OF_THE_MONITOR = ("overhead", "every", "not_finite")


@dataclass(frozen=True)
class History:
    """One run; every array has one entry per measured step."""

    steps: NDArray[np.int64]
    scalars: dict[str, Array]
    """Name -> (T,): ``train_accuracy``, ``test_accuracy`` and whatever else was recorded."""
    stable_ranks: dict[str, Array]
    """Matrix -> (T,): stable rank / min(m, n) (Decomposed Learning, Equation 6)."""
    summary: dict[str, Any]
    """The run's ``summary.json``."""

    @property
    def gap_closed_at(self) -> int | None:
        """The first measured step at which the generalisation gap was closed."""
        step: int | None = self.summary["gap_closed_at_step"]
        return step

    def final(self, scalar: str) -> float:
        """The last value of a scalar."""
        return float(self.scalars[scalar][-1])

    def first_step(self, scalar: str, level: float) -> int | None:
        """The first measured step at which a scalar is at least ``level``."""
        reached = np.flatnonzero(self.scalars[scalar] >= level)
        return int(self.steps[reached[0]]) if len(reached) else None

    def best(self, scalar: str) -> float:
        """The largest value of a scalar; NaN where there is none."""
        values = self.scalars[scalar]
        return float(np.nanmax(values)) if np.isfinite(values).any() else float("nan")


def write_summary(
    experiment: str,
    options: Options[Any],
    folder: Path,
    training: Training,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``summary.json``, the mark of a finished run, and return what it holds.

    ``options.settings`` is a `TrainingSettings`; ``more`` is put beside the common entries.
    """
    settings: TrainingSettings = options.settings
    run = load_run(folder)
    train, test = run.scalars["train_accuracy"], run.scalars["test_accuracy"]
    scalars = {k: v for k, v in run.scalars.items() if k not in _OF_THE_MONITOR}
    summary: dict[str, Any] = json_value(
        {
            "experiment": experiment,
            "preset": options.preset,
            "overrides": options.overrides,
            "seed": options.seed,
            "machine": machine(options.device),
            "steps": training.step,
            "gap_closed_at_step": closed_at(run.steps, train, test, settings.gap_level),
            "seconds": round(training.seconds, 1),
            "ms_per_step": round(1e3 * training.seconds / max(1, training.step), 2),
            "parameters": parameter_count(training.model),
            "final": {name: float(values[-1]) for name, values in scalars.items()},
            "best_test_accuracy": float(np.max(test)),
            "shapes": {matrix.name: list(matrix.shape) for matrix in training.monitor.matrices},
            **(more or {}),
        }
    )
    write_json(folder / SUMMARY, summary)
    return summary


def read_history(folder: Path) -> History:
    """The history of the finished run in ``folder``."""
    run = load_run(folder)
    summary = json.loads((folder / SUMMARY).read_text())
    # A decomposed layer has as many singular values as its rank; it is its shape that counts.
    sides = {name: min(shape) for name, shape in summary["shapes"].items()}
    stable = run.metrics["stable_rank"]
    return History(
        steps=run.steps,
        scalars={k: v for k, v in run.scalars.items() if k not in _OF_THE_MONITOR},
        stable_ranks={name: stable[name] / side for name, side in sides.items()},
        summary=summary,
    )
