"""The character model: the paper's parameters, and what a run is made of."""

import json
from dataclasses import replace

import pytest
import torch
from spectral_monitor.decomposed.convert.model import decompose_model

from experiments.decomposed_shakespeare.__main__ import main
from experiments.decomposed_shakespeare.claims import arm, check_claims
from experiments.decomposed_shakespeare.data import (
    even_starts,
    read_text,
    split_text,
    windows,
)
from experiments.decomposed_shakespeare.model import CharacterTransformer
from experiments.decomposed_shakespeare.presets import GROUPS, PRESETS, Settings, ranks
from experiments.decomposed_shakespeare.study import arms_of, figures_of
from experiments.decomposed_shakespeare.study import main as study_main
from experiments.decomposed_shakespeare.task import make_task
from experiments.kit.options import Options
from experiments.kit.updates import Updates
from tests.support.dispatched import NoReads
from tests.support.study_outcomes import by_label, outcome


def parameters(decompose, rank):
    settings = Settings(decompose=decompose, rank=rank)
    model = CharacterTransformer(settings, 65)
    if decompose != "none":
        decompose_model(model, ranks(settings))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("decompose", "rank", "expected"),
    # Appendix G.1, and the ratios there: 0.1683 and 0.7215.
    [("none", 1.0, 10_788_929), ("all", 0.125, 1_815_249), ("all", 0.5, 7_783_809)],
)
def test_parameters_are_the_papers(decompose, rank, expected):
    assert parameters(decompose, rank) == expected


def test_the_groups_together_are_all_layers():
    parts = [pattern for name in GROUPS if name != "all" for pattern in GROUPS[name]]
    shapes = []
    for patterns in (parts, GROUPS["all"], ["output"]):
        model = CharacterTransformer(PRESETS["cpu"], 5)
        decompose_model(model, dict.fromkeys(patterns, 0.25))
        shapes.append({name: p.shape for name, p in model.named_parameters()})
    assert shapes[0] == shapes[1] != shapes[2]


def test_the_model_sees_no_character_that_it_predicts():
    torch.manual_seed(0)
    model = CharacterTransformer(PRESETS["cpu"], 11).eval()
    tokens = torch.randint(11, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_text_is_split_in_order_and_windows_are_of_it():
    text = split_text("abcabd" * 50, 0.9)
    assert text.characters == "abcd"
    assert (len(text.train), len(text.test)) == (270, 30)
    x, y = windows(text.train, torch.tensor([3, 253]), 16)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(y[1], text.train[254:])


def test_measured_windows_are_spread_over_the_text():
    assert even_starts(1_000, 5, 16).tolist() == [0, 192, 384, 592, 784]
    # No more than there are: 30 characters have one window of 16 and the one after each of them.
    assert even_starts(30, 5, 16).tolist() == [0]


def test_the_default_text_comes_with_python(tmp_path):
    assert len(read_text(None)) > 300_000
    (tmp_path / "input.txt").write_text("To be", encoding="utf-8")
    assert read_text(tmp_path) == "To be"
    with pytest.raises(ValueError, match=r"has no input\.txt; expected a folder"):
        read_text(tmp_path / "elsewhere")


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match=r"rank is 0\.0; expected 0 < rank <= 1"):
        Settings(rank=0.0)
    with pytest.raises(ValueError, match="decompose is 'head'; expected none, embedding"):
        Settings(decompose="head")
    with pytest.raises(ValueError, match="expected d_model to be a multiple"):
        Settings(heads=5)


# --- runs --------------------------------------------------------------------------------------

TINY = replace(
    PRESETS["cpu"], d_model=16, heads=2, length=16, batch_size=2, max_steps=6, points=3,
    dropout=0.1, measured_windows=4, decompose="all", rank=0.5,
)  # fmt: skip


def options(tmp_path, data=None):
    return Options("cpu", TINY, {}, 0, tmp_path, data, torch.device("cpu"), "resume")


def test_a_run_leaves_its_summary(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "cpu", TINY)
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--decompose", "attention"]
    assert main(arguments) == 0
    (path,) = tmp_path.rglob("summary.json")
    summary = json.loads(path.read_text())
    assert summary["steps"] == 6
    assert 0 < summary["best_test_accuracy"] < 1
    # Queries, keys and values of two heads in two blocks, four other layers each, and three more.
    assert len(summary["shapes"]) == 2 * (3 * 2 + 3) + 3
    assert summary["shapes"]["blocks.1.attention.query.0.weight"] == [8, 16]
    assert main(arguments) == 0
    assert "is finished" in capsys.readouterr().out


def test_an_update_asks_the_device_for_no_number(tmp_path):
    task = make_task(options(tmp_path))
    updates = Updates(task.loss, task.optimizer, task.batches, task.rate, torch.device("cpu"))
    updates.run(0, 1)
    with NoReads():
        updates.one()


def test_the_papers_preset_asks_for_its_text(tmp_path, capsys):
    for command in (main, study_main):
        assert command(["--preset", "paper", "--out", str(tmp_path)]) == 1
        assert "preset paper reads input.txt; expected --data" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_short_is_refused(tmp_path, capsys):
    (tmp_path / "input.txt").write_text("to be or not to be. ", encoding="utf-8")
    assert main(["--out", str(tmp_path / "runs"), "--data", str(tmp_path)]) == 1
    assert "the training part of the text has 18 characters" in capsys.readouterr().err


# --- the study ---------------------------------------------------------------------------------


def papers(**changes):
    """The paper's table as far as its text has it."""
    found = {("none", 1.0, 0.1): (43.6540, 9.0, 10_788_929),
             ("none", 1.0, 0.5): (54.4636, 9.0, 10_788_929),
             ("none", 1.0, 0.9): (58.1418, 9.0, 10_788_929),
             ("all", 0.5, 0.9): (57.9970, 5.0, 7_783_809),
             ("all", 0.125, 0.9): (51.8473, 3.3944, 1_815_249),
             ("all", 0.125, 0.5): (50.9275, 5.6651, 1_815_249)}  # fmt: skip
    found.update(changes.get("found", {}))
    return by_label(
        *(
            outcome(arm(*key), best, gap=gap, parameters=parameters)
            for key, (best, gap, parameters) in found.items()
        )
    )


def test_the_papers_own_figures_hold():
    claims = check_claims(PRESETS["paper"], papers())
    assert len(claims) == 5
    assert [claim.holds for claim in claims] == [True] * 5
    assert claims[1].measured["points"] == pytest.approx(0.1448)
    assert round(claims[1].measured["parameters"], 4) == 0.7215
    assert round(claims[3].measured["parameters"], 4) == 0.1683
    assert all(claim.holds for claim in check_claims(PRESETS["cpu"], papers()))


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_claims_can_fail(preset):
    worse = {
        ("none", 1.0, 0.1): (60.0, 9.0, 100),
        ("all", 0.5, 0.9): (53.0, 10.0, 100),
        ("all", 0.125, 0.9): (58.5, 6.0, 100),
    }
    claims = check_claims(PRESETS[preset], papers(found=worse))
    assert [claim.holds for claim in claims] == [False] * 5


def test_the_table_has_every_group_at_every_rank():
    figure = figures_of(papers())["rank_table"]
    # Nothing but the baseline has 10 % of the text here.
    assert len(figure.axes) == 4
    accuracy, gap = figure.axes[:2]
    assert "90% of the text: best test accuracy, % (baseline 58.14)" in accuracy.get_title()
    assert [text.get_text() for text in accuracy.texts] == ["51.85", "58.00"]
    assert [text.get_text() for text in gap.texts] == ["3.39", "5.00"]
    # Blue, which is high, is better: more accuracy, a smaller gap.
    assert (accuracy.images[0].get_array() < 0).all()
    assert (gap.images[0].get_array() > 0).all()


def test_a_baseline_alone_is_drawn():
    alone = arm("none", 1.0, 0.9)
    assert list(figures_of({alone.label: papers()[alone.label]})) == ["stable_ranks"]


def test_both_presets_are_measured_at_200_points():
    assert {settings.points for settings in PRESETS.values()} == {200}


def test_arms_of_the_study():
    arms = arms_of("all")
    assert len(arms) == 3 * (1 + 7 * 5)
    assert len({each.label for each in arms}) == len(arms)
    assert {each.label for each in arms_of("claims")} < {each.label for each in arms}
