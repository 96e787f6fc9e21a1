"""The MNIST experiments: counts, data, training, claims and figures, at toy size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from spectral_monitor.decomposed.convert.recomposition import recompose_model
from spectral_monitor.decomposed.layers.layer import DecomposedLayer

from experiments.decomposed_mnist import __main__ as command
from experiments.decomposed_mnist import data, study
from experiments.decomposed_mnist.model import GROUPS, make_model
from experiments.decomposed_mnist.presets import PRESETS, Settings
from experiments.decomposed_mnist.task import make_optimizer, make_task, one_hot_error
from experiments.kit.checkpoint import seed_everything
from experiments.kit.datasets import ImageSplit
from experiments.kit.history import read_history
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
