"""The variants that a study compares, and what their runs came to, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spectral_monitor.step.frame import Array

from experiments.kit.claims import json_value
from experiments.kit.history import History


@dataclass(frozen=True)
class Arm:
    """One variant: a preset with ``overrides``, trained once for each seed.

    ``label`` names it; arms of one ``series`` ("attention", say) are drawn in one panel, each in
    the colour of its ``rank``. The baseline has no rank and is drawn in every panel.
    """

    label: str
    series: str
    rank: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether it is what the others are compared with."""
        return self.rank is None

    def argv(self) -> list[str]:
        """The overrides as options of the experiment's command."""
        words = []
        for name, value in self.overrides.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words.append(f"--{flag}={'none' if value is None else value}")
        return words


def baseline(**overrides: Any) -> Arm:
    """The arm without a decomposed layer."""
    return Arm("baseline", "baseline", None, {"decompose": "none", **overrides})


def decomposed(layers: str, rank: float, **overrides: Any) -> Arm:
    """The arm that keeps the group ``layers`` at this share of its full rank."""
    overrides = {"decompose": layers, "rank": rank, **overrides}
    return Arm(f"{layers.replace('_', ' ')} {rank:.4g}", layers, rank, overrides)


@dataclass(frozen=True)
class Outcome:
    """An arm and its finished runs, by seed."""

    arm: Arm
    runs: Mapping[int, History]

    @property
    def steps(self) -> NDArray[np.int64]:
        """The measured steps, up to the end of the longest run."""
        longest = max(self.runs.values(), key=lambda run: len(run.steps))
        return longest.steps

    def gap_steps(self) -> dict[int, int]:
        """Seed -> steps to the gap, of the runs that closed it."""
        found = {seed: run.gap_closed_at for seed, run in self.runs.items()}
        return {seed: step for seed, step in found.items() if step is not None}

    def mean_gap_step(self) -> float | None:
        """Mean steps to the gap; None unless every run closed it."""
        found = self.gap_steps()
        return float(np.mean(list(found.values()))) if len(found) == len(self.runs) else None

    def curves(self, scalar: str) -> Array:
        """(runs, T): a scalar at `steps`."""
        return self._over_steps(lambda run: run.scalars[scalar])

    def stable_ranks(self) -> dict[str, Array]:
        """Matrix -> (T,): normalised stable rank at `steps`, mean over runs."""
        names = next(iter(self.runs.values())).stable_ranks
        return {name: self._stable_rank(name).mean(axis=0) for name in names}

    def finals(self, scalar: str) -> Array:
        """(runs,): last values."""
        return np.array([run.final(scalar) for run in self.runs.values()])

    def bests(self, scalar: str) -> Array:
        """(runs,): largest values."""
        return np.array([run.best(scalar) for run in self.runs.values()])

    def summary(self) -> dict[str, Any]:
        """The arm's entry of a study's ``summary.json``."""
        runs = self.runs.values()
        gaps = {seed: run.gap_closed_at for seed, run in self.runs.items()}
        known = [step for step in gaps.values() if step is not None]
        return {
            "label": self.arm.label,
            "overrides": dict(self.arm.overrides),
            "seeds": list(self.runs),
            "parameters": next(iter(runs)).summary["parameters"],
            "gap_closed_at_step": {str(seed): step for seed, step in gaps.items()},
            "runs_that_closed_the_gap": len(known),
            "steps_to_gap": mean_and_std(known),
            "steps": {str(seed): run.summary["steps"] for seed, run in self.runs.items()},
            "final_test_accuracy": mean_and_std(self.finals("test_accuracy")),
            "final_train_accuracy": mean_and_std(self.finals("train_accuracy")),
            "best_test_accuracy": mean_and_std(self.bests("test_accuracy")),
            "seconds": mean_and_std([run.summary["seconds"] for run in runs]),
            "ms_per_step": mean_and_std([run.summary["ms_per_step"] for run in runs]),
        }

    def _stable_rank(self, name: str) -> Array:
        return self._over_steps(lambda run: run.stable_ranks[name])

    def _over_steps(self, values: Callable[[History], Array]) -> Array:
        """(runs, T); a run that ended early keeps its last value."""
        length = len(self.steps)
        return np.stack([_extended(values(run), length) for run in self.runs.values()])


def mean_and_std(values: Sequence[float] | Array) -> dict[str, float] | None:
    """Mean and standard deviation over runs (that of a sample; 0 for one run); None of nothing."""
    if len(values) == 0:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    found: dict[str, float] = json_value({"mean": float(np.mean(values)), "std": std})
    return found


def _extended(values: Array, length: int) -> Array:
    return np.pad(np.asarray(values), (0, length - len(values)), mode="edge")
