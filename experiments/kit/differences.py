"""How arms differ from a baseline, in points of accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.kit.arms import Arm, Outcome


def best_accuracy(outcome: Outcome) -> float:
    """The best measured test accuracy in percent, mean over runs."""
    return 100.0 * float(outcome.bests("test_accuracy").mean())


def gap_at_best(outcome: Outcome) -> float:
    """Training minus test accuracy in points where the latter is best, mean over runs."""
    train, test = outcome.curves("train_accuracy"), outcome.curves("test_accuracy")
    best = np.nanargmax(test, axis=1)[:, None]
    gaps = np.take_along_axis(train, best, 1) - np.take_along_axis(test, best, 1)
    return 100.0 * float(gaps.mean())


def parameters_ratio(outcome: Outcome, base: Outcome) -> float:
    """How many parameters an arm has of the baseline's."""
    counts = [next(iter(o.runs.values())).summary["parameters"] for o in (outcome, base)]
    return float(counts[0] / counts[1])


def found(outcomes: Mapping[str, Outcome], arms: Sequence[Arm]) -> list[Outcome] | None:
    """The outcomes of these arms in their order, or None where one has no finished run."""
    known = [outcomes.get(arm.label) for arm in arms]
    return None if None in known else [outcome for outcome in known if outcome is not None]
