"""The kit: options, run folders, checkpoints, claims as JSON and tables."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.kit import run_folder
from experiments.kit.checkpoint import load_checkpoint, save_checkpoint, seed_everything
from experiments.kit.claims import Claim
from experiments.kit.machine import machine
from experiments.kit.options import parse_options
from experiments.kit.table import format_table
from experiments.modular_addition.presets import PRESETS
from tests.support.modular_addition import CPU, parse


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_parses_to_itself(name):
    options = parse("--preset", name)
    assert options.settings == PRESETS[name]
    assert options.overrides == {}


def test_overrides_replace_fields_of_the_preset():
    options = parse("--preset", "demo", "--weight-decay", "0", "--max-steps", "2500", "--seed", "3")
    assert options.settings == replace(PRESETS["demo"], weight_decay=0.0, max_steps=2500)
    assert options.overrides == {"weight_decay": 0.0, "max_steps": 2500}
    assert options.seed == 3


def test_an_override_equal_to_the_preset_is_none():
    assert parse("--weight-decay", "1").overrides == {}


def test_boolean_and_choice_overrides():
    options = parse("--no-stop-when-generalized", "--positions", "sinusoidal")
    assert options.settings.stop_when_generalized is False
    assert options.settings.positions == "sinusoidal"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--wieght-decay", "0"], "unrecognized arguments: --wieght-decay"),
        (["--weight", "0"], "unrecognized arguments: --weight"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--max-steps", "many"], "invalid int value: 'many'"),
        (["--positions", "rotary"], "invalid choice: 'rotary'"),
        (["--max-steps", "0"], "max_steps is 0; expected at least 1"),
        (["--train-fraction", "1"], "train_fraction is 1.0 and p is 59"),
        (["--heads", "3"], "d_model is 128 and heads is 3"),
        (["--device", "abacus"], "--device abacus: expected auto, cpu or cuda"),
        (["--resume", "--fresh"], "not allowed with argument"),
    ],
)
def test_wrong_command_lines_are_refused_by_name(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_optional_fields_take_none():
    @dataclass(frozen=True)
    class Preset:
        limit: int | None = 5

    def limit(*argv: str) -> int | None:
        options = parse_options(
            {"a": Preset()}, prog="test", description="", default_preset="a", argv=argv
        )
        return options.settings.limit

    assert limit("--limit", "none") is None
    assert limit("--limit", "7") == 7
    assert limit() == 5


def test_overrides_have_folders_of_their_own(tmp_path):
    def folder(*argv: str) -> Path:
        return run_folder.run_folder("x", parse("--out", str(tmp_path), *argv))

    assert folder() == tmp_path / "x" / "demo" / "seed0"
    assert folder("--weight-decay", "0", "--seed", "1") == (
        tmp_path / "x" / "demo+weight_decay=0.0" / "seed1"
    )
    assert folder("--p", "7", "--heads", "2") == folder("--heads", "2", "--p", "7")


def test_config_says_what_was_run_and_names_no_place(tmp_path):
    folder = run_folder.open_run_folder("x", parse("--out", str(tmp_path), "--p", "7"))
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["p"] == 7
    assert config["overrides"] == {"p": 7}
    assert config["versions"]["torch"] == torch.__version__
    assert config["machine"] == machine("cpu")
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_a_folder_with_other_settings_is_refused(tmp_path):
    options = parse("--out", str(tmp_path))
    run_folder.open_run_folder("x", options)
    changed = replace(options, settings=replace(options.settings, d_mlp=256))
    with pytest.raises(ValueError, match="d_mlp: 512 there, 256 now"):
        run_folder.open_run_folder("x", changed)
    run_folder.open_run_folder("x", replace(changed, existing="fresh"))


@pytest.mark.parametrize(
    ("existing", "finished", "kept"),
    [
        ("resume", False, True),
        ("resume", True, True),
        ("again", False, True),
        ("again", True, False),
        ("fresh", False, False),
    ],
)
def test_what_is_deleted_before_a_run(tmp_path, existing, finished, kept):
    options = parse("--out", str(tmp_path))
    folder = run_folder.open_run_folder("x", options)
    (folder / "metrics.jsonl").write_text("{}\n")
    if finished:
        run_folder.write_json(folder / "summary.json", {})
    run_folder.open_run_folder("x", replace(options, existing=existing))
    assert (folder / "metrics.jsonl").exists() == kept


def test_a_folder_that_is_not_ours_is_never_deleted(tmp_path):
    options = parse("--out", str(tmp_path), "--fresh")
    folder = run_folder.run_folder("x", options)
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a run folder"):
        run_folder.open_run_folder("x", options)
    assert (folder / "thesis.tex").exists()


def test_a_checkpoint_brings_all_generators_back(tmp_path):
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    seed_everything(5)
    np.random.randn()  # leaves a second normal in the cache, part of the state
    save_checkpoint(tmp_path / "c.pt", {"step": 3})
    expected = draw()
    draw()
    assert load_checkpoint(tmp_path / "c.pt", CPU) == {"step": 3}
    assert draw() == expected


def test_seeds_repeat_and_differ():
    def draw(seed: int) -> list[float]:
        seed_everything(seed)
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    assert draw(1) == draw(1)
    assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"step": 3})
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path / "c.pt", {"step": 4, "broken": lambda: None})
    assert load_checkpoint(tmp_path / "c.pt", CPU) == {"step": 3}


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "c.pt", CPU) is None


def test_claims_are_json_even_with_nan():
    claim = Claim("c", "s", [1.0], {"a": float("nan"), "b": (float("inf"), 2.0)}, False)
    row = claim.to_dict()
    assert row["measured"] == {"a": None, "b": [None, 2.0]}
    json.dumps(row, allow_nan=False)


def test_table_columns_line_up():
    text = format_table(["matrix", "rank"], [["a", "1.5"], ["longer", "10"]])
    assert text.splitlines() == ["matrix  rank", "------  ----", "a        1.5", "longer    10"]
    with pytest.raises(ValueError, match="1 cells under a header of 2"):
        format_table(["a", "b"], [["x"]])
