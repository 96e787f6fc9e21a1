"""Claims, arms and figures of the MNIST experiments, on histories made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.decomposed_mnist import __main__ as command
from experiments.decomposed_mnist import decay, grokking, study
from experiments.decomposed_mnist.presets import PRESETS
from experiments.kit.arms import Arm, Outcome
from experiments.kit.run_folder import run_folder
from tests.support.mnist import history


def outcomes(arms: list[Arm], test: dict[str, Any], train: dict[str, Any] | None = None):
    """Every arm with the accuracy that is named for it, one seed."""
    return {
        arm.label: Outcome(arm, {0: history(test[arm.label], (train or {}).get(arm.label, 1.0))})
        for arm in arms
    }


def paper_accuracies() -> dict[str, float]:
    """The paper's figures; full rank at a decay of 0.01 and 0.1 loses 54.22 points."""
    found = {}
    for decayed, base in decay.BASELINE.items():
        found[decay.baseline_at(decayed).label] = base / 100
        full = {0.01: 92.66 - 54.22, 0.1: 86.02 - 54.22}.get(decayed, base + 2.21)
        found[decay.decomposed_at(decayed, "all", 1.0).label] = min(full, base + 2.21) / 100
        found[decay.decomposed_at(decayed, "all", 0.4).label] = base / 100 + 0.0105
    return found


def test_the_papers_own_table_holds():
    claims = decay.decay_claims(outcomes(decay.decay_arms("claims"), paper_accuracies()))
    assert len(claims) == 7
    assert [claim.claim for claim in claims if not claim.holds] == []
    gain = claims[3].measured["points"]
    assert gain == pytest.approx(2.21)
    json.dumps([claim.to_dict() for claim in claims], allow_nan=False)


@pytest.mark.parametrize(
    ("changed", "value", "failing"),
    [
        ("baseline, decay 0.001", 0.95, [0]),
        ("all 100%, decay 0.001", 0.97, [1]),
        ("all 40%, decay 0.001", 0.97, [2]),
        ("all 100%, decay 0", 0.93, [1, 3]),
        ("all 40%, decay 0", 0.93, [2, 4]),
        ("all 100%, decay 0.01", 0.95, [5]),
        ("all 100%, decay 0.1", 0.87, [1, 6]),
    ],
)
def test_each_decay_claim_can_fail(changed, value, failing):
    accuracies = paper_accuracies()
    assert changed in accuracies
    claims = decay.decay_claims(
        outcomes(decay.decay_arms("claims"), {**accuracies, changed: value})
    )
    assert [i for i, claim in enumerate(claims) if not claim.holds] == failing


def test_claims_of_arms_that_failed_are_left_out():
    arms = decay.decay_arms("claims")
    known = outcomes(arms, paper_accuracies())
    del known["all 100%, decay 0"]
    claims = decay.decay_claims(known)
    assert [claim.holds for claim in claims] == [True, False, True, True]
    del known["baseline, decay 0.1"]
    assert not decay.decay_claims(known)[0].holds  # an order of five is not that of six


def test_the_ranks_that_decay_costs():
    arms = decay.decay_arms("all")
    assert len(arms) == 6 * (1 + 4 * 10)
    # The smallest share that keeps the accuracy: 0.4, 0.4, 0.5, 0.9, none, none.
    enough = dict(zip(decay.BASELINE, (0.4, 0.4, 0.5, 0.9, 2.0, 2.0), strict=True))
    accuracies = {}
    for arm in arms:
        kept = arm.rank is None or arm.rank >= enough[arm.overrides["weight_decay"]]
        accuracies[arm.label] = 0.9 if kept else 0.8
    claims = decay.decay_claims(outcomes(arms, accuracies))[-4:]
    assert [claim.holds for claim in claims] == [True] * 4
    assert list(claims[0].measured.values()) == [0.4, 0.4, 0.5, 0.9, None, None]
    # One rank in the middle that falls below ends the range.
    accuracies["all 90%, decay 0"] = 0.8
    claims = decay.decay_claims(outcomes(arms, accuracies))[-4:]
    assert [claim.holds for claim in claims] == [False, True, True, True]
    assert claims[0].measured["0"] == 1.0


def test_labels_are_all_different():
    for arms in (decay.decay_arms, grokking.grokking_arms):
        for which in ("claims", "all"):
            labels = [arm.label for arm in arms(which)]
            assert len(set(labels)) == len(labels)


def test_arms_are_options_of_the_command():
    for preset in ("cpu", "grokking-cpu"):
        arms, folders = study.arms_of(PRESETS[preset], "all"), set()
        for arm in arms:
            options = command.parse(["--preset", preset, *arm.argv()])
            for name, value in arm.overrides.items():
                assert getattr(options.settings, name) == value
            folders.add(run_folder(command.NAME, options))
        assert len(folders) == len(arms)


def test_delay_is_a_ratio_of_steps():
    late = history([0.1, 0.1, 0.2, 0.3, 0.9], [0.1, 0.3, 1.0, 1.0, 1.0])
    assert grokking.delay(late) == 100.0
    tandem = history([0.1, 0.1, 0.2, 0.8, 0.8], [0.1, 0.3, 0.4, 1.0, 1.0])
    assert grokking.delay(tandem) == 1.0
    assert np.isnan(grokking.delay(history(0.5, 0.5)))


LATE = [0.1, 0.1, 0.2, 0.3, 0.80]


FITS = [0.1, 0.3, 1.0, 1.0, 1.0]


def papers_grokking() -> tuple[dict[str, Any], dict[str, Any]]:
    """Curves that have all that appendix F says of its own."""
    test: dict[str, Any] = {"baseline": LATE}
    train: dict[str, Any] = {"baseline": FITS}
    for arm in grokking.grokking_arms("claims")[1:]:
        end = 0.9
        if arm.series == "layer1" or (arm.series == "layer3" and arm.rank != 1.0):
            end = 0.7
        test[arm.label] = [0.1, 0.1, 0.2, end, end]
        train[arm.label] = [0.1, 0.1, 0.3, 1.0, 1.0]
    return test, train


def test_what_appendix_f_says_holds_of_what_it_shows():
    test, train = papers_grokking()
    claims = grokking.grokking_claims(outcomes(grokking.grokking_arms("claims"), test, train))
    assert len(claims) == 10
    assert [claim.claim for claim in claims if not claim.holds] == []


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ("layer1 0.25", [1, 2]),
        ("layer2 0.25", [3]),
        ("layer2 1", [4, 3]),
        ("layer3 1", [5]),
        ("layer3 0.5", []),
        ("layers23 1", [7, 8]),
        ("layer1 1 without decay", [9]),
    ],
)
def test_each_grokking_claim_can_fail(changed, failing):
    test, train = papers_grokking()
    assert changed in test
    # Late, and at an end between that of layer 1 and the others; for layer 1 above the baseline.
    end = 0.85 if changed == "layer1 0.25" else 0.69
    test[changed], train[changed] = [0.1, 0.1, 0.2, 0.3, end], FITS
    claims = grokking.grokking_claims(outcomes(grokking.grokking_arms("claims"), test, train))
    assert [i for i, claim in enumerate(claims) if not claim.holds] == sorted(failing)


def test_grokking_claims_of_arms_that_failed_are_left_out():
    test, train = papers_grokking()
    arms = [
        arm
        for arm in grokking.grokking_arms("claims")
        if arm.label in ("baseline", "layer2 0.5", "layers23 1")
    ]
    claims = grokking.grokking_claims(outcomes(arms, test, train))
    assert [claim.claim.split(",")[0] for claim in claims] == [
        "the baseline groks",
        "layer 2 decomposed ends above the baseline",
        "layers 2 and 3 at 100 %: no grokking",
        "layers 2 and 3 at 100 % end above the baseline",
    ]


def test_a_baseline_that_does_not_grok_says_so():
    test, train = papers_grokking()
    train["baseline"] = [0.1, 0.1, 0.3, 0.5, 1.0]
    claims = grokking.grokking_claims(outcomes(grokking.grokking_arms("claims"), test, train))
    assert not claims[0].holds
    assert not grokking.grokking_claims({})


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cpu", "grokking-cpu"])
def test_a_study_from_the_command_line(tmp_path, preset, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setitem(PRESETS, preset, replace(PRESETS[preset], max_steps=3, points=3, width=16))
    makers = {"cpu": "decay_arms", "grokking-cpu": "grokking_arms"}
    every = getattr(study, makers[preset])("claims")
    kept = [arm for arm in every if arm.rank in (None, 1.0)][:4]
    monkeypatch.setattr(study, makers[preset], lambda which: kept)
    # Processes of their own would not see the small preset.
    for arm in kept:
        assert command.main(["--preset", preset, "--out", str(tmp_path), *arm.argv()]) == 0
    argv = ["--preset", preset, "--out", str(tmp_path), "--seeds", "1"]
    assert study.main(argv) == 0
    folder = tmp_path / "decomposed_mnist" / f"study-{preset}"
    summary = json.loads((folder / "summary.json").read_text())
    assert [arm["label"] for arm in summary["arms"]] == [arm.label for arm in kept]
    assert summary["claims"]
    assert summary["failed"] == []
    figures = sorted((folder / "figures").iterdir())
    assert len(figures) >= 3
    for path in figures:
        assert imread(path).std() > 0.01
    assert "expected" in capsys.readouterr().out
