"""What the paper says about the character model, tested against the runs of a study."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.decomposed_shakespeare.presets import PRESETS, Settings
from experiments.kit.arms import Arm, Outcome
from experiments.kit.claims import Claim
from experiments.kit.differences import best_accuracy, found, gap_at_best, parameters_ratio

SOURCE = "Decomposed Learning and Grokking, appendix G.1"
FRACTIONS = (0.9, 0.5, 0.1)
# Share of the text -> the baseline's best test accuracy, %.
BASELINE = {0.1: 43.6540, 0.5: 54.4636, 0.9: 58.1418}
# How far from the paper's accuracies the full size may be, in points: the standard deviations of
# its three runs are not given.
NEAR = 1.0
_DIRECTION = "; at a reduced size only the direction is tested"


def arm(layers: str, rank: float, fraction: float) -> Arm:
    """A group of layers at a share of its ranks (``"none"``: the baseline), on a share of the
    text."""
    overrides = {"decompose": layers, "rank": rank, "train_fraction": fraction}
    name = "baseline" if layers == "none" else layers.replace("_", " ")
    label = f"{name}, {fraction:.0%} of the text"
    if layers == "none":
        return Arm(label, "baseline", None, overrides)
    return Arm(f"{layers.replace('_', ' ')} {rank:.4g}, {fraction:.0%} of the text", layers, rank,
               overrides)  # fmt: skip


def check_claims(settings: Settings, outcomes: Mapping[str, Outcome]) -> list[Claim]:
    """The claims that the arms at hand can test; with the paper's figures at the paper's size."""
    full = settings == PRESETS["paper"]
    trio = found(outcomes, [arm("none", 1.0, 0.9), arm("all", 0.5, 0.9), arm("all", 0.125, 0.9)])
    claims = []
    bases = found(outcomes, [arm("none", 1.0, fraction) for fraction in BASELINE])
    if bases is not None:
        claims.append(_more_text(full, bases))
    if trio is not None:
        base, half, eighth = trio
        claims += [
            _half_the_ranks(full, base, half, eighth),
            _smaller_gap(base, half),
            _an_eighth(full, base, eighth),
        ]
    eighths = found(outcomes, [arm("all", 0.125, fraction) for fraction in (0.9, 0.5)])
    if eighths is not None:
        claims.append(_gap_and_text(eighths))
    return claims


def _more_text(full: bool, bases: list[Outcome]) -> Claim:
    measured = {f"{f:.0%}": best_accuracy(o) for f, o in zip(BASELINE, bases, strict=True)}
    values = list(measured.values())
    near = all(abs(v - e) <= NEAR for v, e in zip(values, BASELINE.values(), strict=True))
    paper = ", ".join(f"{value:.2f}" for value in BASELINE.values())
    return Claim(
        claim="the baseline's test accuracy rises with the share of the text it is trained on, %",
        source=SOURCE,
        expected=f"{paper}, within {NEAR:g}" if full else f"rising; the paper's {paper}",
        measured=measured,
        holds=values == sorted(values) and (near or not full),
    )


def _half_the_ranks(full: bool, base: Outcome, half: Outcome, eighth: Outcome) -> Claim:
    loss = best_accuracy(base) - best_accuracy(half)
    at_eighth = best_accuracy(base) - best_accuracy(eighth)
    paper = "at most 0.1448 points, with 0.7215 of the parameters"
    return Claim(
        claim="all layers at 50 % of their ranks cost next to no accuracy"
        if full
        else "all layers at 50 % of their ranks cost less than half of what 12.5 % cost",
        source=SOURCE,
        expected=paper if full else f"less than half; the paper's {paper}{_DIRECTION}",
        measured={
            "points": loss,
            "points_at_12.5_%": at_eighth,
            "parameters": parameters_ratio(half, base),
        },
        holds=loss <= 0.1448 if full else loss < at_eighth / 2,
    )


def _smaller_gap(base: Outcome, half: Outcome) -> Claim:
    measured = {"baseline": gap_at_best(base), "all layers at 50 %": gap_at_best(half)}
    return Claim(
        claim="all layers at 50 % of their ranks have a smaller generalisation gap, points",
        source=SOURCE,
        expected="smaller than the baseline's",
        measured=measured,
        holds=gap_at_best(half) < gap_at_best(base),
    )


def _an_eighth(full: bool, base: Outcome, eighth: Outcome) -> Claim:
    loss = best_accuracy(base) - best_accuracy(eighth)
    paper = "6.2945 points, with 0.1683 of the parameters"
    return Claim(
        claim="all layers at 12.5 % of their ranks cost accuracy",
        source=SOURCE,
        expected=f"{paper}, within {NEAR:g}"
        if full
        else f"some accuracy; the paper's {paper}{_DIRECTION}",
        measured={"points": loss, "parameters": parameters_ratio(eighth, base)},
        holds=abs(loss - 6.2945) <= NEAR if full else loss > 0,
    )


def _gap_and_text(eighths: list[Outcome]) -> Claim:
    most, half = (gap_at_best(outcome) for outcome in eighths)
    return Claim(
        claim="all layers at 12.5 %: the gap is smaller with 90 % of the text than with 50 %, "
        "points",
        source=SOURCE,
        expected="smaller; the paper's 3.3944 and 5.6651",
        measured={"90 %": most, "50 %": half},
        holds=most < half,
    )
