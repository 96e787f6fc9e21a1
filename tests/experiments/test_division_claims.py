"""Claims, arms and figures of decomposed division, on histories made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.decomposed_division.claims import check_claims, delay, steps_ratio
from experiments.decomposed_division.presets import PRESETS
from experiments.decomposed_division.study import arms_of, figures_of
from experiments.kit.arms import Outcome
from experiments.kit.history import History


def made(closed: int | None, *, learned: int = 100, end: int = 10_000) -> History:
    """Training accuracy 1 from ``learned`` on, test accuracy from ``closed`` on."""
    steps = np.unique(np.geomspace(1, end, 200).round().astype(np.int64))
    steps = np.union1d(steps[steps < (closed or end)], [learned, closed or end])
    test = np.where(steps >= (closed or end + 1), 1.0, 0.01 + steps / (20 * end))
    fall = 0.9 - 0.8 * test
    return History(
        steps,
        {"train_accuracy": (steps >= learned).astype(float), "test_accuracy": test},
        {"a.weight": fall, "b.weight": fall / 2, "position_embedding.weight": 1 - fall},
        {"gap_closed_at_step": closed, "steps": int(steps[-1]), "shapes": {}},
    )


def outcomes(**closed: list[int | None]) -> dict[str, Outcome]:
    arms = {arm.label: arm for arm in arms_of("paper80")}
    named = {"baseline": "baseline", "all": "all 1", "attention": "attention 0.125",
             "positions": "positions 1"}  # fmt: skip
    return {
        named[key]: Outcome(arms[named[key]], {i: made(step) for i, step in enumerate(steps)})
        for key, steps in closed.items()
    }


def test_claims_of_the_paper_in_runs_like_the_papers():
    found = outcomes(
        baseline=[4000, 5000], all=[110, 130], attention=[900, 1000], positions=[4000, 6000]
    )
    claims = check_claims(PRESETS["paper80"], found)
    assert [claim.holds for claim in claims] == [True] * 9
    json.dumps([claim.to_dict() for claim in claims], allow_nan=False)
    assert claims[0].measured["times_fewer"] == 4500 / 120


def test_claims_that_do_not_hold_say_so():
    found = outcomes(
        baseline=[300, 300], all=[250, 250], attention=[None, None], positions=[900, 1000]
    )
    claims = check_claims(PRESETS["paper80"], found)
    told = {claim.claim: claim.holds for claim in claims}
    fewer, _, _, _, _, _, no_grokking, attention, positions = told.values()
    assert not any((fewer, no_grokking, attention, positions))


def test_half_of_the_data_has_claims_of_its_own():
    found = outcomes(baseline=[8000], all=[130], attention=[None], positions=[9000])
    claims = check_claims(PRESETS["paper"], found)
    assert "61.67" in claims[0].expected
    assert claims[0].holds
    assert not any("no grokking left" in claim.claim for claim in claims)
    assert "delays" in claims[-1].claim
    assert claims[-1].holds
    attention = claims[-2]
    assert not attention.holds
    assert attention.measured == pytest.approx(0.06, abs=0.01)


def test_a_baseline_that_never_learns_the_test_set_does_not_grok():
    for closed, groks in ((5000, True), (150, False), (None, False)):
        found = outcomes(baseline=[closed], all=[110])
        assert check_claims(PRESETS["paper80"], found)[1].holds is groks


@pytest.mark.parametrize(
    ("base", "arm", "delayed"),
    [
        ([4000, 5000], [6000, 7000], True),
        ([4000, 5000], [3000, 5000], False),
        # Not closed in 10,000 steps: later than the baseline, however much.
        ([4000, 5000], [6000, None], True),
        ([4000, 5000], [None, None], True),
        # The baseline's own steps are not known: neither is who was first.
        ([100, None], [9000, 9000], False),
        ([None, None], [None, None], False),
    ],
)
def test_positions_that_never_close_the_gap_delay_it(base, arm, delayed):
    found = outcomes(baseline=base, positions=arm)
    (claim,) = check_claims(PRESETS["paper65"], found)
    assert claim.holds is delayed


def test_grokking_is_left_where_a_run_never_learns_the_test_set():
    found = check_claims(PRESETS["paper80"], outcomes(baseline=[5000], all=[110, None]))
    (claim,) = (claim for claim in found if "no grokking left" in claim.claim)
    assert not claim.holds
    assert claim.measured["runs"] == 1


def test_lower_ranks_are_held_against_the_baseline_too():
    arms = {arm.label: arm for arm in arms_of("cpu")}
    steps = {"baseline": [5000, 6000], "all 1": [600], "all 0.75": [500], "all 0.5": [7000]}
    found = {
        label: Outcome(arms[label], {i: made(step) for i, step in enumerate(closed)})
        for label, closed in steps.items()
    }
    told = {claim.claim: claim for claim in check_claims(PRESETS["cpu"], found)}
    three_quarters = told["all 0.75: the gap is closed in fewer steps than by the baseline"]
    assert three_quarters.holds
    assert three_quarters.measured["times_fewer"] == 11
    assert not told["all 0.5: the gap is closed in fewer steps than by the baseline"].holds


def test_no_claims_without_a_baseline():
    assert check_claims(PRESETS["paper80"], outcomes(all=[110])) == []


def test_a_baseline_that_never_closes_the_gap_bounds_the_ratio():
    found = outcomes(baseline=[None, 5000], all=[110, 110])
    measured = steps_ratio(found["baseline"], found["all 1"])
    assert measured["times_fewer"] == 7500 / 110
    assert measured["gap_not_closed_in_all_runs"] == ["baseline"]
    found = outcomes(baseline=[5000], all=[None])
    assert steps_ratio(found["baseline"], found["all 1"])["times_fewer"] is None


def test_delay_is_between_the_two_accuracies():
    expected = {"train": 100, "test": 400, "times": 4, "runs": 1}
    assert delay(outcomes(baseline=[400])["baseline"]) == expected
    assert delay(outcomes(baseline=[400, None])["baseline"]) == expected
    assert delay(outcomes(baseline=[None])["baseline"])["times"] is None


def test_arms_are_what_the_claims_need_or_what_is_asked_for():
    quick = [arm.label for arm in arms_of("cpu")]
    assert quick == ["baseline", "all 1", "all 0.75", "all 0.5"]
    assert [arm.label for arm in arms_of("paper80")] == [
        "baseline", "all 1", "all 0.75", "all 0.5", "all 0.25", "all 0.125", "attention 0.125",
        "positions 1",
    ]  # fmt: skip
    asked = arms_of("paper65", ["positions", "output"])
    assert len(asked) == 11
    assert {arm.rank for arm in asked if arm.series == "positions"} == {0.2, 0.4, 0.6, 0.8, 1.0}


def test_figures_are_those_that_the_arms_allow():
    found = outcomes(baseline=[4000], all=[110], positions=[4000])
    assert list(figures_of(found)) == ["accuracy", "ranks", "stable_ranks"]
    assert list(figures_of(outcomes(baseline=[4000], positions=[4000]))) == ["accuracy", "ranks"]
