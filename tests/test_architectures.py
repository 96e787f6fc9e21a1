"""Pairs of real architectures, held against what is right by their definition."""

from __future__ import annotations

import pytest
from architectures.catalogue import CATALOGUE, Architecture
from architectures.every import ARCHITECTURES
from architectures.judge import judge
from architectures.table import measure, read, versions

from python_api.monitor import SpectralMonitor


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
