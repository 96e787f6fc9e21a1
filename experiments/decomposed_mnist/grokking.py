"""Grokking induced on MNIST, and layers decomposed: arms, claims and figures of appendix F."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.kit.arms import Arm, Outcome, baseline, decomposed
from experiments.kit.claims import Claim
from experiments.kit.figures import Figures, accuracy_figure, rank_figure, stable_rank_figure
from experiments.kit.history import History

PAPER = "Decomposed Learning and Grokking, appendix F"

RANKS = (1.0, 0.75, 0.5, 0.25, 0.125)
WITHOUT_DECAY = " without decay"

# An accuracy has risen at the first measured step at which it is so much of its highest.
RISEN = 0.9
# Test accuracy that rises after this many times the steps of training accuracy is delayed, up to
# that many it rises in tandem; between the two it is neither.
DELAYED, TANDEM = 3.0, 2.0


def grokking_arms(which: str) -> list[Arm]:
    """Layers 1, 2 and 3 at each rank, layers 2 and 3 together at full rank, as in the paper, and
    at full rank without decay on the factors; with ``which="all"`` so at every rank."""
    pairs = [(layers, rank) for layers in ("layer1", "layer2", "layer3") for rank in RANKS]
    pairs.append(("layers23", 1.0))
    spared = [pair for pair in pairs if which == "all" or pair[1] == 1.0]
    return [
        baseline(),
        *(decomposed(layers, rank) for layers, rank in pairs),
        *(without_decay(layers, rank) for layers, rank in spared),
    ]


def without_decay(layers: str, rank: float) -> Arm:
    """A group of layers whose factors do not decay, though all other parameters do."""
    arm = decomposed(layers, rank, decay_factors=False)
    return Arm(arm.label + WITHOUT_DECAY, arm.series + WITHOUT_DECAY, rank, arm.overrides)


def grokking_figures(outcomes: Mapping[str, Outcome]) -> Figures:
    """Accuracies over the steps (Figures 25 to 28) and against rank, and the stable ranks of the
    full-rank arms, with and without decay on the factors."""
    base = outcomes.get(baseline().label)
    figures = {"rank": rank_figure(outcomes)}
    for suffix in ("", WITHOUT_DECAY):
        members = {
            label: o
            for label, o in outcomes.items()
            if not o.arm.is_baseline and o.arm.series.endswith(WITHOUT_DECAY) == bool(suffix)
        }
        if base is None or not members:
            continue
        name = suffix.replace(" ", "-")
        figures[f"accuracy{name}"] = accuracy_figure({base.arm.label: base, **members})
        full = [o for o in members.values() if o.arm.rank == 1.0]
        figures[f"stable-rank{name}"] = stable_rank_figure(base, full)
    return figures


def grokking_claims(outcomes: Mapping[str, Outcome]) -> list[Claim]:
    """What can be tested on the arms that are there; nothing without the baseline."""
    base = outcomes.get(baseline().label)
    if base is None:
        return []
    layer1, layer2, layer3 = (_of_series(outcomes, f"layer{i}") for i in (1, 2, 3))
    both = _of_series(outcomes, "layers23")
    full2, full3 = (
        {k: o for k, o in each.items() if o.arm.rank == 1.0} for each in (layer2, layer3)
    )
    less3 = {label: o for label, o in layer3.items() if label not in full3}
    return [
        _baseline_groks(base),
        *_ends(base, layer1, "layer 1 decomposed ends below the baseline", -1, 25),
        *_in_tandem(layer1, "layer 1 decomposed: no grokking at any rank", 25),
        *_ends(base, layer2, "layer 2 decomposed ends above the baseline", 1, 26),
        *_in_tandem(full2, "layer 2 decomposed at 100 %: no grokking", 26),
        *_ends(base, full3, "layer 3 at full rank ends above the baseline", 1, 27),
        *_ends(base, less3, "layer 3 at less ends below the baseline", -1, 27),
        *_in_tandem(both, "layers 2 and 3 at 100 %: no grokking", 28),
        *_ends(base, both, "layers 2 and 3 at 100 % end above the baseline", 1, 28),
        *_decay_is_to_blame(outcomes),
    ]


def delay(run: History) -> float:
    """Steps until test accuracy has `RISEN` over those until training accuracy has; NaN where
    the first of them is step 0."""
    train, test = (_risen_at(run, f"{part}_accuracy") for part in ("train", "test"))
    return test / train if train else float("nan")


def _risen_at(run: History, scalar: str) -> int:
    step = run.first_step(scalar, RISEN * run.best(scalar))
    assert step is not None
    return step


def _of_series(outcomes: Mapping[str, Outcome], series: str) -> dict[str, Outcome]:
    return {label: o for label, o in outcomes.items() if o.arm.series == series}


def _end(outcome: Outcome) -> float:
    """Mean final test accuracy, %."""
    return 100 * float(outcome.finals("test_accuracy").mean())


def _mean_delay(outcome: Outcome) -> float:
    return float(np.mean([delay(run) for run in outcome.runs.values()]))


def _largest_gap(outcome: Outcome) -> float:
    """The largest gap of the mean curves, in points."""
    train, test = (outcome.curves(f"{part}_accuracy").mean(axis=0) for part in ("train", "test"))
    return 100 * float(np.max(train - test))


def _tandem_numbers(outcome: Outcome) -> dict[str, float]:
    return {"delay": _mean_delay(outcome), "largest_gap_points": _largest_gap(outcome)}


def _baseline_groks(base: Outcome) -> Claim:
    return Claim(
        claim="the baseline groks",
        source=f"{PAPER}; Liu et al. 2023, Omnigrok, Figure 3d",
        expected=f"test accuracy reaches {RISEN:.0%} of its highest value after at least "
        f"{DELAYED:g} times the steps of training accuracy",
        measured=_tandem_numbers(base),
        holds=_mean_delay(base) >= DELAYED,
    )


def _in_tandem(arms: Mapping[str, Outcome], claim: str, figure: int) -> list[Claim]:
    if not arms:
        return []
    return [
        Claim(
            claim=f"{claim}, training and test accuracy rise in tandem",
            source=f"{PAPER}, Figure {figure}",
            expected=f"test accuracy reaches {RISEN:.0%} of its highest value within {TANDEM:g} "
            "times the steps of training accuracy",
            measured={label: _tandem_numbers(outcome) for label, outcome in arms.items()},
            holds=all(_mean_delay(outcome) <= TANDEM for outcome in arms.values()),
        )
    ]


def _ends(
    base: Outcome, arms: Mapping[str, Outcome], claim: str, sign: int, figure: int
) -> list[Claim]:
    """Above the baseline where ``sign`` is 1, below where it is -1."""
    if not arms:
        return []
    level = _end(base)
    ends = {label: _end(outcome) for label, outcome in arms.items()}
    return [
        Claim(
            claim=f"{claim}, at every rank that is tried" if len(arms) > 1 else claim,
            source=f"{PAPER}, Figure {figure}",
            expected=f"final test accuracy {'above' if sign > 0 else 'below'} the baseline's",
            measured={"baseline": level, **ends},
            holds=all(sign * (end - level) > 0 for end in ends.values()),
        )
    ]


def _decay_is_to_blame(outcomes: Mapping[str, Outcome]) -> list[Claim]:
    """The paper's reason for what it sees in layer 1, which it does not test."""
    with_decay = _of_series(outcomes, "layer1")
    pairs = {
        label: (outcome, outcomes[label + WITHOUT_DECAY])
        for label, outcome in with_decay.items()
        if label + WITHOUT_DECAY in outcomes
    }
    if not pairs:
        return []
    measured = {
        label: {"with decay": _end(held), "without": _end(spared)}
        for label, (held, spared) in pairs.items()
    }
    return [
        Claim(
            claim="it is the decay of its factors that costs layer 1 its accuracy",
            source=f"{PAPER}, which gives this as the reason",
            expected="higher final test accuracy without decay on the factors",
            measured=measured,
            holds=all(row["without"] > row["with decay"] for row in measured.values()),
        )
    ]
