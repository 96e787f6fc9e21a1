"""Outcomes of arms as a study would have them, made of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.kit.arms import Arm, Outcome
from experiments.kit.history import History


def outcome(arm: Arm, best: float, *, gap: float = 0.0, parameters: int = 100) -> Outcome:
    """One run whose test accuracy is best, in percent, at the second of three measured steps, with
    the training accuracy ``gap`` points above."""
    test = np.array([0.0, best, best - 1.0]) / 100
    train = test + np.array([0.0, gap, gap + 20.0]) / 100
    summary: dict[str, Any] = {"parameters": parameters, "gap_closed_at_step": None, "steps": 10}
    summary |= {"seconds": 1.0, "ms_per_step": 1.0}
    scalars = {"train_accuracy": train, "test_accuracy": test}
    ranks = {"a.weight": np.ones(3), "b.weight": np.ones(3) / 2}
    return Outcome(arm, {0: History(np.array([0, 5, 10]), scalars, ranks, summary)})


def by_label(*outcomes: Outcome) -> dict[str, Outcome]:
    return {each.arm.label: each for each in outcomes}
