"""Pairs of real architectures, held against what is right by their definition."""

from __future__ import annotations

import pytest
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.pairs import discovery
from spectral_monitor.pairs.flow.presets import Family, family_of

from tests.architectures.catalogue import CATALOGUE, Architecture
from tests.architectures.every import ARCHITECTURES
from tests.architectures.judge import judge
from tests.architectures.table import measure, read, versions


@pytest.fixture(params=ARCHITECTURES, ids=lambda one: one.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    one: Architecture = request.param
    if one.missing is not None:
        pytest.skip(one.missing)
    return one


def test_what_a_monitor_finds(architecture: Architecture) -> None:
    row, traced, without = measure(architecture)
    assert traced.text == "no fault"
    assert not without.wrong, f"without inputs:\n{without.text}"
    made_with, lines = read()
    if made_with == versions():
        assert row.line == lines[architecture.name], "python -m tests.architectures --write"


def test_guesses_are_not_wrong_where_no_family_is_known(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_torch(name: str, config: object) -> Family | None:
        return family_of(name, config) if name.startswith("torch.") else None

    monkeypatch.setattr(discovery, "family_of", of_torch)
    example = architecture.example()
    monitor = SpectralMonitor(example.model, reference=None)
    assert not judge(monitor, example.truth).wrong


@pytest.mark.parametrize("how", ["as given", "alphabetical", "with its config"])
def test_tensors_alone_have_no_wrong_pair(architecture: Architecture, how: str) -> None:
    example = architecture.example()
    if type(example.model).__name__ == "TransformerBridge":
        pytest.skip("a bridge has its layers under several names, which a state dict does not tell")
    state = dict(example.model.named_parameters(remove_duplicate=False))
    state = dict(sorted(state.items())) if how == "alphabetical" else state
    config = getattr(example.model, "config", None) if how == "with its config" else None
    judgement = judge(SpectralMonitor(state, reference=None, config=config), example.truth)
    assert not judgement.wrong, judgement.text
    if config is not None:
        assert not judgement.missed, judgement.text


def test_the_table_has_every_architecture() -> None:
    assert list(read()[1]) == [*(one.name for one in ARCHITECTURES), "all"]


def test_a_false_pair_is_called_wrong_and_what_is_left_out_missed() -> None:
    example = CATALOGUE["TransformerLens, old layout"].example()
    # The MLP read backwards: its sizes fit.
    backwards = [("blocks.0.mlp.W_out", "blocks.0.mlp.W_in"), ("embed.W_E", "blocks.0.attn.W_Q")]
    judgement = judge(
        SpectralMonitor(example.model, reference=None, pairs=backwards), example.truth
    )
    (wrong,) = judgement.wrong
    assert wrong.startswith("blocks.0.mlp.W_out -> blocks.0.mlp.W_in: entry 0 of")
    assert judgement.right == ["embed.W_E -> blocks.0.attn.W_Q"]
    assert len(judgement.missed) == len(example.truth.entries) - 1
