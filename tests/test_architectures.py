"""Pairs of real architectures, held against what is right by their definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures.catalogue import Architecture, Example
from architectures.every import ARCHITECTURES
from architectures.judge import judge

import spectral_kernels
from python_api.monitor import SpectralMonitor


@pytest.fixture(params=ARCHITECTURES, ids=lambda one: one.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    one: Architecture = request.param
    if one.missing is not None:
        pytest.skip(one.missing)
    return one


def run(example: Example) -> Any:
    with torch.no_grad():
        return example.model(*example.args, **example.kwargs)


def test_the_example_runs_and_says_what_is_right(architecture: Architecture) -> None:
    example = architecture.example()
    run(example)
    assert example.truth.entries


def test_without_inputs_no_pair_is_wrong(architecture: Architecture) -> None:
    example = architecture.example()
    judgement = judge(SpectralMonitor(example.model, reference=None), example.truth)
    assert not judgement.wrong, judgement.text


def test_traced_no_pair_is_wrong_and_none_is_missed(architecture: Architecture) -> None:
    example = architecture.example()
    trace = spectral_kernels.trace(example.model, *example.args, **example.kwargs)
    monitor = SpectralMonitor(example.model, reference=None, pairs=trace)
    judgement = judge(monitor, example.truth)
    assert not judgement.wrong, judgement.text
    assert not judgement.missed, judgement.text
