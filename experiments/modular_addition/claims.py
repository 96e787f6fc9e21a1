"""What the papers say about this system, tested against one run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from experiments.kit.claims import Claim
from experiments.kit.correlation import rank_correlation
from experiments.modular_addition.history import History
from experiments.modular_addition.presets import Settings

PAPER = "Yunis et al. 2024, Grokking, Rank Minimization"

# A matrix's effective rank counts as fallen, or as kept, on either side of this relative change.
RANK_FALL = 0.1
# Of the mean index of aligned vectors, from memorisation to the end: less varies with the machine.
CENTRE_FALL = 1.0
# Up to this share of trained pairs the papers report memorisation first; they are at 30 %.
SMALL_FRACTION = 0.5
# The papers' first attention matrix is a fused one. Here the queries are made from "=" alone and
# the keys hardly differ between residues, so it is the values that the embedding feeds.
ATTENTION = "attention.value.weight"
EMBEDDING_TO_ATTENTION = ("embedding.weight", ATTENTION)


def check_claims(settings: Settings, history: History) -> list[Claim]:
    """The claims that the papers make for these settings; none for settings they do not cover."""
    if settings.train_fraction > SMALL_FRACTION:
        return []
    if settings.weight_decay > 0:
        return [
            _memorizes(history),
            _generalizes_late(history),
            _rank_falls_everywhere(history),
            _loss_and_rank_fall_together(history),
            _embedding_aligns_with_attention(settings, history),
            _alignment_moves_up(history),
        ]
    return [_memorizes(history), _never_generalizes(history), _rank_is_kept(history)]


def check_control(
    decayed: tuple[Settings, History], control: tuple[Settings, History]
) -> list[Claim]:
    """What the papers say of two runs that differ in weight decay alone, with and without it.

    None for runs that differ in anything else, or of which the first has no decay.
    """
    (settings, history), (others, kept) = decayed, control
    is_pair = settings.weight_decay > 0 and others == replace(settings, weight_decay=0.0)
    if not is_pair or settings.train_fraction > SMALL_FRACTION:
        return []
    return [_no_alignment_without_decay(history, kept)]


def _no_alignment_without_decay(history: History, control: History) -> Claim:
    scores = [run.alignment_score(EMBEDDING_TO_ATTENTION) for run in (history, control)]
    steps = np.intersect1d(history.steps, control.steps)
    steps = steps[steps >= (history.generalized_at or 0)]
    compared = history.generalized_at is not None and len(steps) > 0
    step = int(steps[0]) if compared else None
    with_decay, without = (
        float(score[run.index(step)]) if step is not None else math.nan
        for score, run in zip(scores, (history, control), strict=True)
    )
    return Claim(
        claim="without weight decay there is no such alignment at the same step of the same seed",
        source=f"{PAPER}, Figure 2, top two rows; a(t) of Equation 4",
        expected="when the run with decay generalises, a(t) without decay below half of that with "
        "it; both memorised",
        measured={"step": step, "with decay": with_decay, "without": without},
        holds=compared
        and history.memorized_at is not None
        and control.memorized_at is not None
        and without < 0.5 * with_decay,
    )


def _memorizes(history: History) -> Claim:
    return Claim(
        claim="training accuracy reaches 1",
        source=f"{PAPER}, Figure 2, top two rows",
        expected=1.0,
        measured=float(np.max(history.scalars["train_accuracy"])),
        holds=history.memorized_at is not None,
    )


def _generalizes_late(history: History) -> Claim:
    memorized, generalized = history.memorized_at, history.generalized_at
    return Claim(
        claim="validation accuracy reaches 1 long after training accuracy did (grokking)",
        source=f"{PAPER}, Figure 1 left and Section 3",
        expected="validation accuracy 1, at 5 times as many steps or more",
        measured={
            "train_accuracy_1_at_step": memorized,
            "validation_accuracy_1_at_step": generalized,
            "highest_validation_accuracy": _maximum(history, "validation_accuracy"),
        },
        holds=memorized is not None and generalized is not None and generalized >= 5 * memorized,
    )


def _rank_falls_everywhere(history: History) -> Claim:
    change = _rank_change_after_memorizing(history)
    return Claim(
        claim="the effective rank of every matrix falls between memorisation and generalisation",
        source=f"{PAPER}, Figure 1 right and Section 3",
        expected=f"relative change of every matrix below {-RANK_FALL}",
        measured=change,
        # Without generalisation there is nothing that the fall could have come with.
        holds=history.generalized_at is not None
        and bool(change)
        and all(value < -RANK_FALL for value in change.values()),
    )


def _rank_is_kept(history: History) -> Claim:
    change = _rank_change_after_memorizing(history)
    return Claim(
        claim="without weight decay no effective rank falls after memorisation",
        source=f"{PAPER}, Figure 2, top row",
        expected=f"relative change of every matrix above {-RANK_FALL}",
        measured=change,
        holds=bool(change) and all(value > -RANK_FALL for value in change.values()),
    )


def _never_generalizes(history: History) -> Claim:
    highest = _maximum(history, "unmirrored_accuracy")
    measured = {
        "steps": int(history.steps[-1]),
        "train_accuracy_1_at_step": history.memorized_at,
        "highest_validation_accuracy": _maximum(history, "validation_accuracy"),
        "highest_unmirrored_accuracy": highest,
    }
    return Claim(
        claim="without weight decay the network does not generalise within the run",
        source=f"{PAPER}, Figure 2, top row",
        # A pair (i, j) is answered from its trained mirror (j, i) without knowing how to add, so
        # the pairs without one decide.
        expected="training accuracy 1, and accuracy on validation pairs without a trained mirror "
        "stays below 0.5",
        measured=measured,
        # A network that has not even learned its pairs shows nothing.
        holds=history.memorized_at is not None and highest < 0.5,
    )


def _loss_and_rank_fall_together(history: History) -> Claim:
    start = 0 if history.memorized_at is None else history.index(history.memorized_at)
    loss = history.scalars["validation_loss"][start:]
    validated = np.isfinite(loss)
    correlation = rank_correlation(loss[validated], history.mean_rank()[start:][validated])
    return Claim(
        claim="validation loss and mean effective rank fall together",
        source=f"{PAPER}, Figure 1 and Section 3",
        expected="rank correlation over the steps after memorisation above 0.9",
        measured=correlation,
        holds=bool(correlation > 0.9),
    )


def _embedding_aligns_with_attention(settings: Settings, history: History) -> Claim:
    score = history.alignment_score(EMBEDDING_TO_ATTENTION)
    # The mean of |<u, v>| over random directions in d dimensions.
    chance = math.sqrt(2.0 / (math.pi * settings.d_model))
    measured = {"start": float(score[0]), "end": float(score[-1])}
    if history.memorized_at is not None:
        measured["memorisation"] = float(score[history.index(history.memorized_at)])
    return Claim(
        claim="an alignment between embedding and attention begins early in training",
        source=f"{PAPER}, Figure 2, second row; a(t) of Equation 4",
        expected=f"at memorisation and at the end above {3 * chance:.3f}, 3 times that of random "
        "directions",
        measured=measured,
        holds=min(measured.get("memorisation", 0.0), measured["end"]) > 3 * chance,
    )


def _alignment_moves_up(history: History) -> Claim:
    centre = history.alignment_centre(EMBEDDING_TO_ATTENTION)
    start = 0 if history.memorized_at is None else history.index(history.memorized_at)
    measured = {"memorisation": float(centre[start]), "end": float(centre[-1])}
    return Claim(
        claim="that alignment evolves up the diagonal, from the middle ranks to the top",
        source=f"{PAPER}, Figure 2, second row",
        expected=f"mean index of the aligned vectors lower by {CENTRE_FALL} or more at the end "
        "than at memorisation, in a run that generalised",
        measured=measured,
        holds=history.memorized_at is not None
        and history.generalized_at is not None
        and measured["end"] <= measured["memorisation"] - CENTRE_FALL,
    )


def _rank_change_after_memorizing(history: History) -> dict[str, float]:
    """Relative change of each matrix's effective rank from memorisation to generalisation, or to
    the end of a run that did not generalise; empty for a run that did not memorise."""
    if history.memorized_at is None:
        return {}
    start = history.index(history.memorized_at)
    end = -1 if history.generalized_at is None else history.index(history.generalized_at)
    return {name: float(rank[end] / rank[start] - 1.0) for name, rank in history.ranks.items()}


def _maximum(history: History, scalar: str) -> float:
    """The largest value; NaN where it was never measured."""
    values = history.scalars[scalar]
    values = values[np.isfinite(values)]
    return float(np.max(values)) if len(values) else float("nan")
