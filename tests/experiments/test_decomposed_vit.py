"""The Vision Transformer: the paper's parameters, its augmentation, and what a run is made of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from spectral_monitor.decomposed.convert.model import decompose_model

import experiments.kit.study as kit_study
from experiments.decomposed_vit import study, task
from experiments.decomposed_vit.__main__ import main
from experiments.decomposed_vit.augment import augment, random_flip, random_shift
from experiments.decomposed_vit.claims import check_claims
from experiments.decomposed_vit.model import VisionTransformer
from experiments.decomposed_vit.presets import PRESETS, Settings, ranks
from experiments.decomposed_vit.randaugment import OPERATIONS, rand_augment
from experiments.kit.arms import baseline, decomposed
from experiments.kit.datasets import ImageSplit
from experiments.kit.options import Options
from experiments.kit.updates import Updates
from tests.support.dispatched import NoReads
from tests.support.study_outcomes import by_label, outcome


def parameters(**changes):
    settings = Settings(**changes)
    model = VisionTransformer(settings, side=32, channels=3, classes=10)
    if settings.decompose != "none":
        decompose_model(model, ranks(settings, positions=64))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    # Appendix G.2: the whole, and what the decomposition of all but two layers makes of it.
    [({}, 827_530), ({"decompose": "all_but_fc1_and_output", "rank": 0.125}, 363_658)],
)
def test_parameters_are_the_papers(changes, expected):
    assert parameters(**changes) == expected


def test_positions_have_a_rank_that_is_a_share_of_the_width():
    # With 8 of 64, as the other layers have it, the count would be 361,930.
    assert ranks(Settings(decompose="all", rank=0.125), 64)["positions"] == 16
    assert ranks(Settings(decompose="all", rank=0.75), 64)["positions"] == 64


def test_images_that_patches_do_not_fill_are_refused():
    with pytest.raises(ValueError, match="images have side 30 and patches 4"):
        VisionTransformer(PRESETS["paper"], side=30, channels=3, classes=10)


def bytes_of_images():
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(6, 3, 1, 1, generator=generator)
    images = (torch.rand(6, 3, 32, 32, generator=generator) * spread * 255).to(torch.uint8)
    images[0, 0] = 7
    return images


def pillow(name, sign):
    """What torchvision has Pillow do at magnitude 9 of 30, shears about the centre."""
    from PIL import Image, ImageEnhance, ImageOps

    def affine(*rows):
        return lambda image: image.transform((32, 32), Image.AFFINE, rows)

    def enhanced(kind):
        return lambda image: kind(image).enhance(1 + 0.27 * sign)

    return {
        "identity": lambda image: image,
        "shear_x": affine(1, 0.09 * sign, -0.09 * sign * 16, 0, 1, 0),
        "shear_y": affine(1, 0, 0, 0.09 * sign, 1, -0.09 * sign * 16),
        "translate_x": affine(1, 0, 4 * sign, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, 4 * sign),
        "rotate": lambda image: image.rotate(9 * sign),
        "brightness": enhanced(ImageEnhance.Brightness),
        "color": enhanced(ImageEnhance.Color),
        "contrast": enhanced(ImageEnhance.Contrast),
        "sharpness": enhanced(ImageEnhance.Sharpness),
        "posterize": lambda image: ImageOps.posterize(image, 7),
        "solarize": lambda image: ImageOps.solarize(image, 178.5),
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
    }[name]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_operations_are_pillows(name, sign):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib")
    images = bytes_of_images()
    ours = OPERATIONS[name](images.float() / 255, torch.full((6,), float(sign)))
    theirs = [
        np.asarray(pillow(name, sign)(image_module.fromarray(image.permute(1, 2, 0).numpy())))
        for image in images
    ]
    difference = ours.permute(0, 2, 3, 1).numpy() * 255 - np.stack(theirs)
    # Pillow rounds grey levels and results to bytes, down in places: 1.13 at most was seen.
    assert np.abs(difference).max() < 1.5


def test_every_image_is_changed_by_itself():
    torch.manual_seed(0)
    image = bytes_of_images()[1:2].float() / 255
    many = image.expand(200, -1, -1, -1)
    changed = augment(many)
    assert changed.shape == many.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert len(torch.unique(changed.flatten(1), dim=0)) > 150
    assert torch.equal(many[0], image[0])
    # Both operations are the identity once in 196 images.
    assert len(torch.unique(rand_augment(many).flatten(1), dim=0)) > 50


def test_shifts_and_flips_are_of_whole_images():
    torch.manual_seed(0)
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    shifted = random_shift(image.expand(300, -1, -1, -1), 1)
    # Nine places; the middle pixel is there in each of them.
    assert len(torch.unique(shifted.flatten(1), dim=0)) == 9
    assert (shifted == 5).flatten(1).sum(1).eq(1).all()
    flipped = random_flip(image.expand(300, -1, -1, -1))
    same = (flipped == image).flatten(1).all(1)
    assert 100 < same.sum() < 200
    assert torch.equal(flipped[~same][0], image[0].flip(-1))


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="warmup_steps is 100 of 100 steps"):
        Settings(warmup_steps=100, max_steps=100)
    with pytest.raises(ValueError, match=r"rank is 1\.5; expected 0 < rank <= 1"):
        Settings(rank=1.5)


# --- runs --------------------------------------------------------------------------------------

TINY = replace(
    PRESETS["cpu"], d_model=16, layers=1, batch_size=4, max_steps=4, warmup_steps=1, points=2
)  # fmt: skip


def test_a_run_leaves_its_summary(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    arguments = ["--decompose", "all", "--rank", "0.25", "--device", "cpu"]
    assert main(["--out", str(tmp_path), *arguments]) == 0
    (path,) = tmp_path.rglob("summary.json")
    summary = json.loads(path.read_text())
    assert summary["steps"] == 4
    assert 0 < summary["best_test_accuracy"] < 1
    # The patches, the positions, a block's six and the last two.
    assert len(summary["shapes"]) == 10
    assert summary["shapes"]["positions.weight"] == [16, 16]


def test_an_update_asks_the_device_for_no_number(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 8, 8, generator=generator)
    labels = torch.arange(40) % 10
    split = ImageSplit("made up", images[:32], labels[:32], images[32:], labels[32:])
    monkeypatch.setattr(task, "read_images", lambda options: split)
    settings = replace(TINY, augment=True, dropout=0.1, decompose="all")
    options = Options("cpu", settings, {}, 0, Path("unused"), None, torch.device("cpu"), "resume")
    made = task.make_task(options)
    updates = Updates(made.loss, made.optimizer, made.batches, made.rate, torch.device("cpu"))
    updates.run(0, 1)
    with NoReads():
        updates.one()


def test_the_learning_rate_rises_and_falls():
    settings = PRESETS["paper"]
    rates = [task.learning_rate(settings, step) for step in range(settings.max_steps)]
    assert rates[0] == pytest.approx(5e-4 / 3_900)
    assert max(rates) == rates[3_899] == rates[3_900] == 5e-4
    assert rates[3_900 + 35_100 // 2] == pytest.approx((5e-4 + 1e-5) / 2)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-3)


def test_images_that_need_a_folder_ask_for_it(tmp_path, capsys):
    for preset, name in (("mnist", "MNIST"), ("paper", "CIFAR-10")):
        for command in (main, study.main):
            assert command(["--preset", preset, "--out", str(tmp_path)]) == 1
            assert f"preset {preset} reads {name}; expected --data" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_would_not_be_read_is_refused(tmp_path, capsys):
    for command in (main, study.main):
        assert command(["--out", str(tmp_path), "--data", str(tmp_path)]) == 1
        assert "preset cpu with these options reads no folder" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--data", str(tmp_path), "--images", "mnist"]) == 1
    assert "t10k-images-idx3-ubyte is missing" in capsys.readouterr().err


# --- the study ---------------------------------------------------------------------------------


def papers(**changes):
    """The paper's figures where its text has them; the losses of single groups are made up."""
    best = {
        ("all", 1.0): 75.23,
        ("attention", 1.0): 73.42,
        ("all", 0.125): 39.95,
        ("all_but_fc1_and_output", 0.125): 72.26 - 1.68,
        ("positions", 0.125): 72.0,
        ("attention", 0.125): 71.0,
        ("projection", 0.125): 72.1,
        ("fc1", 0.125): 60.0,
        ("fc2", 0.125): 71.5,
        ("pre_output", 0.125): 72.2,
        ("output", 0.125): 55.0,
    }
    best.update(changes.get("best", {}))
    sizes = {"all_but_fc1_and_output": 363_658}
    return by_label(
        outcome(baseline(), 72.26, parameters=827_530),
        *(
            outcome(decomposed(*key), value, parameters=sizes.get(key[0], 1))
            for key, value in best.items()
        ),
    )


def test_the_papers_own_figures_hold():
    assert [claim.holds for claim in check_claims(PRESETS["paper"], papers())] == [True] * 5
    assert [claim.holds for claim in check_claims(PRESETS["cpu"], papers())] == [True] * 5


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_claims_can_fail(preset):
    worse = {
        ("all", 1.0): 71.0,
        ("attention", 1.0): 72.0,
        ("all_but_fc1_and_output", 0.125): 55.0,
        ("positions", 0.125): 50.0,
    }
    claims = check_claims(PRESETS[preset], papers(best=worse))
    assert [claim.holds for claim in claims] == [False] * 5


def test_a_study_trains_compares_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    arms = [baseline(), decomposed("all", 1.0), decomposed("all", 0.125)]
    monkeypatch.setattr(study, "arms_of", lambda which: arms)

    def run_here(study, arm, seed):
        # In this process, where the preset is tiny.
        return None if main(study.argv(arm, seed)) == 0 else arm.label

    monkeypatch.setattr(kit_study, "_run_one", run_here)
    assert study.main(["--jobs", "1", "--device", "cpu", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "decomposed_vit" / "study-cpu"
    summary = json.loads((folder / "summary.json").read_text())
    assert [each["label"] for each in summary["arms"]] == [arm.label for arm in arms]
    assert len(summary["claims"]) == 1
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "accuracy.png", "rank_table.png", "stable_ranks.png"
    }  # fmt: skip
    assert "decomposed at 100 % of its ranks, all gains accuracy" in capsys.readouterr().out


def test_a_baseline_alone_is_drawn():
    alone = baseline().label
    figures = study.figures_of({alone: papers()[alone]})
    assert list(figures) == ["accuracy", "stable_ranks"]


def test_every_preset_is_measured_at_200_points():
    assert {settings.points for settings in PRESETS.values()} == {200}


def test_arms_of_the_study():
    assert len(study.arms_of("all")) == 1 + 11 * 5
    assert {arm.label for arm in study.arms_of("claims")} < {
        arm.label for arm in study.arms_of("all")
    }
