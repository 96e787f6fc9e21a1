"""What the paper says about the Vision Transformer, tested against the runs of a study."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.decomposed_vit.presets import GROUPS, PRESETS, Settings
from experiments.kit.arms import Outcome, baseline, decomposed
from experiments.kit.claims import Claim
from experiments.kit.differences import best_accuracy, found, parameters_ratio

SOURCE = "Decomposed Learning and Grokking, appendix G.2"
# How far from the paper's points the full size may be: the standard deviations of its three runs
# are not given.
NEAR = 1.0
_DIRECTION = "; at a reduced size only the direction is tested"


def check_claims(settings: Settings, outcomes: Mapping[str, Outcome]) -> list[Claim]:
    """The claims that the arms at hand can test; with the paper's figures at the paper's size."""
    full = settings == PRESETS["paper"]
    return [
        *_gain(full, outcomes, "all", 2.97),
        *_gain(full, outcomes, "attention", 1.16),
        *_low_ranks(full, outcomes),
        *_most_affected(outcomes),
        *_all_but_two(full, outcomes),
    ]


def _gain(full: bool, outcomes: Mapping[str, Outcome], layers: str, paper: float) -> list[Claim]:
    arms = found(outcomes, [baseline(), decomposed(layers, 1.0)])
    if arms is None:
        return []
    base, arm = map(best_accuracy, arms)
    return [
        Claim(
            claim=f"decomposed at 100 % of its ranks, {layers} gains accuracy",
            source=SOURCE,
            expected=f"{paper} points, within {NEAR:g}"
            if full
            else f"a gain; the paper's {paper} points{_DIRECTION}",
            measured={"baseline": base, "decomposed": arm, "points": arm - base},
            holds=abs(arm - base - paper) <= NEAR if full else arm > base,
        )
    ]


def _low_ranks(full: bool, outcomes: Mapping[str, Outcome]) -> list[Claim]:
    arms = found(
        outcomes,
        [baseline(), decomposed("all", 0.125), decomposed("all_but_fc1_and_output", 0.125)],
    )
    if arms is None:
        return []
    base, every, but_two = map(best_accuracy, arms)
    return [
        Claim(
            claim="all layers at 12.5 % of their ranks lose much accuracy, most of it by fc1 and "
            "the output",
            source=SOURCE,
            expected="39.95 %, within 2, and most of the loss gone without those two"
            if full
            else f"most of the loss gone without those two; the paper's 39.95 %{_DIRECTION}",
            measured={"baseline": base, "all": every, "all but fc1 and output": but_two},
            holds=base - every > 2 * (base - but_two) and (not full or abs(every - 39.95) <= 2),
        )
    ]


def _most_affected(outcomes: Mapping[str, Outcome]) -> list[Claim]:
    single = [name for name in GROUPS if not name.startswith("all")]
    arms = found(outcomes, [baseline(), *(decomposed(name, 0.125) for name in single)])
    if arms is None:
        return []
    base, *others = map(best_accuracy, arms)
    lost = {name: base - accuracy for name, accuracy in zip(single, others, strict=True)}
    worst = sorted(lost, key=lambda name: lost[name])[-2:]
    return [
        Claim(
            claim="of the groups of layers at 12.5 % of their ranks, fc1 and the output lose most, "
            "points",
            source=f"{SOURCE}, Figure 31",
            expected="fc1 and output",
            measured=lost,
            holds=set(worst) == {"fc1", "output"},
        )
    ]


def _all_but_two(full: bool, outcomes: Mapping[str, Outcome]) -> list[Claim]:
    arms = found(outcomes, [baseline(), decomposed("all_but_fc1_and_output", 0.125)])
    if arms is None:
        return []
    base, arm = arms
    loss = best_accuracy(base) - best_accuracy(arm)
    ratio = parameters_ratio(arm, base)
    return [
        Claim(
            claim="all but fc1 and the output at 12.5 % of their ranks: much smaller, a little "
            "accuracy lost",
            source=SOURCE,
            expected=f"0.4394 of the parameters and 1.68 points, within {NEAR:g}"
            if full
            else "less than two thirds of the parameters and at most 3 points; the paper's 0.4394 "
            f"and 1.68{_DIRECTION}",
            measured={"parameters": ratio, "points": loss},
            holds=abs(loss - 1.68) <= NEAR and round(ratio, 4) == 0.4394
            if full
            else ratio < 2 / 3 and loss <= 3,
        )
    ]
