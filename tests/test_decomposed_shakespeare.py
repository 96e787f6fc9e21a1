"""The character model: the paper's parameters, and what a run is made of."""

import pytest
import torch

from experiments.decomposed_shakespeare.data import (
    even_starts,
    read_text,
    split_text,
    windows,
)
from experiments.decomposed_shakespeare.model import CharacterTransformer
from experiments.decomposed_shakespeare.presets import GROUPS, PRESETS, Settings, ranks
from python_api.decomposed.model import decompose_model


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
