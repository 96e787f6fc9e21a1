"""The MNIST experiments: counts, data, training, claims and figures, at toy size."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from spectral_monitor.decomposed.convert.recomposition import recompose_model
from spectral_monitor.decomposed.layers.layer import DecomposedLayer

from experiments.decomposed_mnist import __main__ as command
from experiments.decomposed_mnist import data, decay, grokking, study
from experiments.decomposed_mnist.model import GROUPS, make_model
from experiments.decomposed_mnist.presets import PRESETS, Settings
from experiments.decomposed_mnist.task import make_optimizer, make_task, one_hot_error
from experiments.kit.arms import Arm, Outcome
from experiments.kit.checkpoint import seed_everything
from experiments.kit.datasets import ImageSplit
from experiments.kit.history import History, read_history
from experiments.kit.run_folder import run_folder
from experiments.kit.supervised import run_supervised
from experiments.kit.training import parameter_count

CPU = torch.device("cpu")


def paper_model(**overrides: Any) -> torch.nn.Sequential:
    return make_model(replace(PRESETS["paper"], **overrides), pixels=784)


# --- sizes -------------------------------------------------------------------------------------


def test_the_papers_sizes_exactly():
    assert parameter_count(paper_model()) == 269_322
    training = paper_model(decompose="all", rank=0.4)
    assert parameter_count(training) == 180_714
    assert round(100 * 180_714 / 269_322, 2) == 67.10
    inference = recompose_model(training, form="smallest")
    assert parameter_count(inference) == 159_890
    assert round(100 * 159_890 / 269_322, 2) == 59.37
    grokking_model = make_model(PRESETS["grokking-paper"], pixels=784)
    assert parameter_count(grokking_model) == 784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10


@pytest.mark.parametrize("name", sorted(set(GROUPS) - {"none"}))
def test_each_group_is_the_layers_of_its_name(name):
    model = paper_model(decompose=name, rank=0.5)
    found = {n for n, module in model.named_modules() if isinstance(module, DecomposedLayer)}
    wanted = {"all": "123", "layers23": "23"}.get(name, name.removeprefix("layer"))
    assert found == {f"layer{i}" for i in wanted}


def test_arms_start_from_the_same_function_and_scale():
    x = torch.rand(7, 784)
    made = []
    for overrides in ({}, {"decompose": "all"}, {"decompose": "layers23"}):
        seed_everything(3)
        made.append(paper_model(initial_scale=8.0, **overrides)(x))
    seed_everything(3)
    plain = paper_model()
    # 8 x (W x + b) at each of three layers; ReLU keeps positive factors.
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(8)
    for logits in [*made[1:], plain(x)]:
        torch.testing.assert_close(logits, made[0], rtol=1e-4, atol=1e-3)


# --- presets -----------------------------------------------------------------------------------


def test_presets_are_the_papers():
    paper = PRESETS["paper"]
    assert (paper.width, paper.batch_size, paper.learning_rate) == (256, 256, 1e-3)
    assert (paper.optimizer, paper.momentum, paper.loss) == ("sgd", 0.9, "cross_entropy")
    assert paper.max_steps == 25 * math.ceil(60_000 / 256)
    grok = PRESETS["grokking-paper"]
    assert (grok.width, grok.batch_size, grok.learning_rate) == (200, 200, 1e-3)
    assert (grok.optimizer, grok.weight_decay, grok.loss) == ("adamw", 0.01, "mse")
    assert (grok.initial_scale, grok.train_images, grok.decay_factors) == (8.0, 1_000, True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 0, "width is 0; expected at least 1"),
        ("train_images", 0, "train_images is 0; expected at least 1, or none"),
        ("initial_scale", 0.0, "initial_scale is 0.0; expected more than 0"),
        ("momentum", -0.1, "momentum is -0.1; expected at least 0"),
        ("weight_decay", -1.0, "weight_decay is -1.0; expected at least 0"),
        ("rank", 0.0, "rank is 0.0"),
    ],
)
def test_settings_that_no_run_can_be_made_of(field, value, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{field: value})


@pytest.mark.parametrize("preset", sorted(command.NEED_MNIST))
def test_mnist_presets_ask_for_its_folder(preset, capsys, tmp_path):
    assert command.main(["--preset", preset, "--out", str(tmp_path)]) == 1
    assert f"preset {preset} reads MNIST; expected --data" in capsys.readouterr().err
    assert study.main(["--preset", preset, "--out", str(tmp_path)]) == 1
    assert f"preset {preset} reads MNIST; expected --data" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- data --------------------------------------------------------------------------------------


def split(train: int, test: int) -> ImageSplit:
    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.arange(count)
        return (index / count).view(-1, 1, 1, 1).expand(-1, 1, 2, 3), index % 10

    return ImageSplit("toy", *images(train), *images(test))


@pytest.mark.parametrize(
    ("train", "test", "measured"),
    [(60_000, 10_000, 10_000), (8_000, 2_000, 2_000), (1_438, 359, 1_000), (400, 359, 400)],
)
def test_what_is_measured_of_the_training_images(monkeypatch, train, test, measured):
    monkeypatch.setattr(data, "digits_or_mnist", lambda folder: split(train, test))
    assert data.load_images(None, None, CPU).measured == measured


def test_a_subset_is_the_same_every_time_and_keeps_labels(monkeypatch):
    monkeypatch.setattr(data, "digits_or_mnist", lambda folder: split(500, 20))
    torch.manual_seed(1)
    first = data.load_images(None, 100, CPU)
    torch.manual_seed(2)
    again = data.load_images(None, 100, CPU)
    assert first.train_pixels.shape == (100, 6)
    assert torch.equal(first.train_pixels, again.train_pixels)
    index = (first.train_pixels[:, 0] * 500).round().long()
    assert len(index.unique()) == 100
    assert torch.equal(index % 10, first.train_labels)
    with pytest.raises(ValueError, match="train_images is 501; expected at most 500"):
        data.load_images(None, 501, CPU)


# --- training ----------------------------------------------------------------------------------


def test_the_error_is_the_mean_over_images_and_classes():
    logits = torch.zeros(4, 10)
    logits[0, 3] = 1.0
    labels = torch.tensor([3, 1, 0, 9])
    assert one_hot_error(logits, labels).item() == pytest.approx(3 / 40)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_shrinks_factors_unless_they_are_spared(optimizer):
    def after_one_step(decay_factors: bool) -> dict[str, float]:
        settings = replace(
            PRESETS["cpu"],
            optimizer=optimizer,
            decompose="layer1",
            learning_rate=0.1,
            weight_decay=0.5,
            decay_factors=decay_factors,
        )
        model = make_model(settings, pixels=20)
        stepper = make_optimizer(model, settings)
        before = {name: p.detach().norm().item() for name, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        stepper.step()
        return {n: p.detach().norm().item() / before[n] for n, p in model.named_parameters()}

    everything, spared = after_one_step(True), after_one_step(False)
    factors = {f"layer1.{factor}" for factor in ("U", "Sigma", "Vh")}
    assert factors < everything.keys()
    for name in everything:
        assert everything[name] == pytest.approx(0.95, rel=1e-5)
        assert spared[name] == pytest.approx(1.0 if name in factors else 0.95, rel=1e-5)


TOY = ["--max-steps", "30", "--points", "6", "--width", "16", "--device", "cpu"]


def toy_run(out: Path, *argv: str) -> Path:
    options = command.parse([*TOY, "--out", str(out), *argv])
    return run_supervised(command.NAME, options, make_task)


@pytest.mark.parametrize("preset", ["cpu", "grokking-cpu"])
def test_a_run_from_the_command_line(tmp_path, preset, capsys):
    pytest.importorskip("sklearn")
    argv = ["--preset", preset, "--decompose", "layer1", "--rank", "0.5", "--learning-rate", "0.02"]
    folder = toy_run(tmp_path, *argv)
    assert "parameters" in capsys.readouterr().out
    history = read_history(folder)
    assert history.steps[0] == 0
    assert history.steps[-1] == 30
    assert history.summary["parameters"] == 64 * 8 + 8 * 8 + 16 * 8 + 16 + 16 * 17 + 17 * 10
    assert history.final("train_loss") < history.scalars["train_loss"][0]
    assert 0 <= history.final("test_accuracy") <= 1
    toy_run(tmp_path, *argv)
    assert "is finished" in capsys.readouterr().out


def test_other_data_has_other_folders(tmp_path):
    options = command.parse(["--out", str(tmp_path), "--data", str(tmp_path / "mnist")])
    named = run_folder(command.NAME, options)
    assert named == tmp_path / "decomposed_mnist" / "cpu+data=mnist" / "seed0"


# --- arms, claims, figures ---------------------------------------------------------------------


def history(test: float | list[float], train: float | list[float] = 1.0) -> History:
    """A run over steps 0, 1, 10, 100, 1000."""
    steps = np.array([0, 1, 10, 100, 1000])
    curves = {
        "train_accuracy": np.broadcast_to(np.array(train, dtype=float), 5),
        "test_accuracy": np.broadcast_to(np.array(test, dtype=float), 5),
    }
    stable = {f"layer{i}.weight": np.full(5, 0.1 * i) for i in (1, 2, 3)}
    return History(steps, curves, stable, {})


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
