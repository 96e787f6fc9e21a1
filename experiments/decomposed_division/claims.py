"""What the paper says about this system, tested against the runs of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.decomposed_division.presets import Settings
from experiments.kit.arms import Outcome, decomposed
from experiments.kit.claims import Claim
from experiments.kit.correlation import rank_correlation

PAPER = "Decomposed Learning and Grokking"

# How many times fewer steps count as "many fewer"; the paper's own figure is for half the data.
FEWER = 3.0
PAPERS_RATIO = 61.67
# Accuracy at which a set counts as learned, and how many times as long the test set may take
# before it counts as grokking.
LEARNED = 0.95
IN_TANDEM = 2.0
# Section 5.3: final test accuracy with the attention at rank 16, by share of the data.
ATTENTION_16 = {0.5: 0.20, 0.65: 0.67, 0.8: 1.0}

ALL = decomposed("all", 1.0).label
HIGH = [decomposed("all", rank).label for rank in (0.75, 0.5)]
ATTENTION = decomposed("attention", 0.125).label
POSITIONS = decomposed("positions", 1.0).label
NOT_DECOMPOSED = "position_embedding.weight"


def check_claims(settings: Settings, outcomes: Mapping[str, Outcome]) -> list[Claim]:
    """The claims for these settings that the arms at hand can test.

    ``outcomes`` is by label; each claim needs the baseline and the arm that it is about.
    """
    base = outcomes.get("baseline")
    if base is None:
        return []
    claims = []
    if ALL in outcomes:
        claims += [
            _many_fewer_steps(settings, base, outcomes[ALL]),
            *(_fewer_steps(base, outcomes[arm]) for arm in HIGH if arm in outcomes),
            _baseline_groks(base),
            _stable_ranks_fall(base),
            _stable_ranks_fall(outcomes[ALL]),
            _falls_with_generalisation(base),
            _falls_with_generalisation(outcomes[ALL]),
        ]
        if settings.train_fraction >= 0.65:
            claims.append(_no_grokking_left(outcomes[ALL]))
    if ATTENTION in outcomes and settings.train_fraction in ATTENTION_16:
        claims.append(_attention_at_rank_16(settings, outcomes[ATTENTION]))
    if POSITIONS in outcomes:
        claims.append(_positions_do_not_help(settings, base, outcomes[POSITIONS]))
    return claims


def _many_fewer_steps(settings: Settings, base: Outcome, arm: Outcome) -> Claim:
    is_papers = settings == Settings()
    measured = steps_ratio(base, arm)
    least = PAPERS_RATIO / 2 if is_papers else FEWER
    ratio = measured["times_fewer"]
    return Claim(
        claim="all layers at full rank close the generalisation gap in many times fewer steps",
        source=f"{PAPER}, section 5.6 and Figure 10 ({PAPERS_RATIO} times, at half of the data)",
        expected=f"{PAPERS_RATIO} times fewer, or at least half of that"
        if is_papers
        else f"at least {FEWER:g} times fewer steps, mean over seeds",
        measured=measured,
        holds=ratio is not None and ratio >= least,
    )


def _fewer_steps(base: Outcome, arm: Outcome) -> Claim:
    measured = steps_ratio(base, arm)
    ratio = measured["times_fewer"]
    return Claim(
        claim=f"{arm.arm.label}: the gap is closed in fewer steps than by the baseline",
        source=f"{PAPER}, section 5.6 and Figure 8",
        expected="more than 1 times fewer steps, mean over seeds",
        measured=measured,
        holds=ratio is not None and ratio > 1,
    )


def _baseline_groks(base: Outcome) -> Claim:
    measured = delay(base)
    return Claim(
        claim="the baseline groks: it learns the test set long after the training set",
        source=f"{PAPER}, section 5.1 and Figure 3",
        expected=f"test accuracy {LEARNED} after more than {IN_TANDEM:g} times the steps of "
        f"training accuracy {LEARNED}, mean over the runs that get there",
        measured=measured,
        holds=measured["times"] is not None and measured["times"] > IN_TANDEM,
    )


def _no_grokking_left(arm: Outcome) -> Claim:
    measured = delay(arm)
    return Claim(
        claim="all layers at full rank: no grokking left, test accuracy rises with training "
        "accuracy",
        source=f"{PAPER}, section 5.6, Figures 8b and 8c",
        expected=f"test accuracy {LEARNED} within {IN_TANDEM:g} times the steps of training "
        f"accuracy {LEARNED}, mean over seeds, all of which get there",
        measured=measured,
        holds=measured["runs"] == len(arm.runs) and measured["times"] <= IN_TANDEM,
    )


def _stable_ranks_fall(arm: Outcome) -> Claim:
    change = {
        name: float(values[-1] / values[0] - 1)
        for name, values in arm.stable_ranks().items()
        if name != NOT_DECOMPOSED
    }
    return Claim(
        claim=f"{arm.arm.label}: the stable rank of every layer is lower at the end than at first",
        source=f"{PAPER}, appendix D, Figures 20, 22 and 23",
        expected="relative change of every layer below 0",
        measured=change,
        holds=all(value < 0 for value in change.values()),
    )


def _falls_with_generalisation(outcome: Outcome) -> Claim:
    ranks = [v for name, v in outcome.stable_ranks().items() if name != NOT_DECOMPOSED]
    test = outcome.curves("test_accuracy").mean(axis=0)
    correlation = rank_correlation(np.mean(ranks, axis=0), test)
    return Claim(
        claim=f"{outcome.arm.label}: the mean stable rank of all layers falls as test accuracy "
        "rises",
        source=f"{PAPER}, appendix D",
        expected="rank correlation over the measured points below -0.8",
        measured=correlation,
        holds=bool(correlation < -0.8),
    )


def _attention_at_rank_16(settings: Settings, arm: Outcome) -> Claim:
    expected = ATTENTION_16[settings.train_fraction]
    found = float(arm.finals("test_accuracy").mean())
    near_perfect = expected == 1.0
    return Claim(
        claim=f"test accuracy with the attention at rank 16, {settings.train_fraction:.0%} of "
        "the data",
        source=f"{PAPER}, section 5.3 and Figure 5",
        expected="near-perfect: at least 0.95" if near_perfect else f"{expected}, within 0.1",
        measured=found,
        holds=found >= 0.95 if near_perfect else abs(found - expected) <= 0.1,
    )


def _positions_do_not_help(settings: Settings, base: Outcome, arm: Outcome) -> Claim:
    measured = steps_ratio(base, arm)
    ratio = measured["times_fewer"]
    if settings.train_fraction < 0.8:
        claim = "decomposing the positions alone delays the end of the gap"
        expected = "more steps than the baseline, which closes it in every run"
        steps = measured["mean_steps"]
        # That the arm's own runs may end before they close it does not take from its delay.
        closed = len(base.gap_steps()) == len(base.runs)
        holds = closed and steps[arm.arm.label] > steps[base.arm.label]
    else:
        claim = "decomposing the positions alone takes about as many steps as the baseline"
        expected = "between half and twice as many steps"
        holds = ratio is not None and 0.5 <= ratio <= 2
    return Claim(claim, f"{PAPER}, section 5.2 and Figure 4", expected, measured, holds)


def steps_ratio(base: Outcome, arm: Outcome) -> dict[str, Any]:
    """Mean steps to the 1 % gap of both, and how many times fewer the arm took.

    A run that did not close the gap counts with its last step, and the arm is named. The ratio is
    then a bound from below where that is the baseline's, and unknown where it is the arm's own.
    """
    steps = {o.arm.label: _steps_or_end(o) for o in (base, arm)}
    means = {label: float(np.mean(list(found.values()))) for label, found in steps.items()}
    open_ = [o.arm.label for o in (base, arm) if len(o.gap_steps()) < len(o.runs)]
    first, second = means[base.arm.label], means[arm.arm.label]
    measured: dict[str, Any] = {"mean_steps": means, "times_fewer": first / second}
    if open_:
        measured["gap_not_closed_in_all_runs"] = open_
    if arm.arm.label in open_:
        measured["times_fewer"] = None
    return measured


def delay(outcome: Outcome) -> dict[str, Any]:
    """Steps to training and to test accuracy 0.95, and how many times as long the test set took.

    Means over the runs that got to both, and how many these are; None where none did.
    """
    found = [
        [run.first_step(scalar, LEARNED) for scalar in ("train_accuracy", "test_accuracy")]
        for run in outcome.runs.values()
    ]
    there = [pair for pair in found if None not in pair]
    if not there:
        return {"train": None, "test": None, "times": None, "runs": 0}
    train, test = (float(mean) for mean in np.mean(np.array(there, dtype=float), axis=0))
    return {"train": train, "test": test, "times": test / train, "runs": len(there)}


def _steps_or_end(outcome: Outcome) -> dict[int, int]:
    return {
        seed: run.gap_closed_at if run.gap_closed_at is not None else int(run.steps[-1])
        for seed, run in outcome.runs.items()
    }
