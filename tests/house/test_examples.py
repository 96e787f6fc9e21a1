"""Docstrings of the public names: each has an example that runs, and speaks of every argument."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spectral_kernels as sk

# What every example may use without saying so.
NAMES = {"sk": sk, "np": np, "torch": torch}
PACKAGES = ("spectral_kernels", "spectral_monitor")


def record(folder: str, **options: Any) -> None:
    """Train a small network for five steps, and record its spectra."""
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(64, 16), torch.randn(64, 8)
    monitor = sk.SpectralMonitor(
        model, every=1, watch=("weights", "updates"), recorder=sk.Recorder(folder), **options
    )
    for step in range(5):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(step, train_loss=loss, train_error=loss / 2)
    monitor.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recorded runs that examples read."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        record("runs/first")
        record("runs/second")
        record("runs/final", reference="final")
    return folder


def documented(name: str) -> Iterator[tuple[str, Any]]:
    """A public name and, of a class, the public methods and properties of it and of our bases."""
    value = getattr(sk, name)
    yield name, value
    if inspect.isclass(value):
        for base in value.__mro__:
            if base.__module__.split(".")[0] in PACKAGES:
                for attribute, member in vars(base).items():
                    member = getattr(member, "__func__", member)
                    if not attribute.startswith("_") and (
                        inspect.isfunction(member) or isinstance(member, property)
                    ):
                        yield f"{name}.{attribute}", member


@pytest.mark.parametrize("name", sk.__all__)
def test_its_examples_run(name: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for where, value in documented(name):
        text = inspect.getdoc(value)
        assert text, f"{where} has no docstring"
        torch.manual_seed(0)
        example = parser.get_doctest(text, dict(NAMES), where, where, 0)
        if where == name:
            assert example.examples, f"{name} has no example"
            assert "Example:\n" in text, f"{name}: expected the example under 'Example:'"
        output: list[str] = []
        runner.run(example, out=output.append)
        assert not output, "".join(output)


@pytest.mark.parametrize("name", sk.__all__)
def test_it_speaks_of_every_argument(name: str) -> None:
    for where, value in documented(name):
        if isinstance(value, property) or is_record(value):
            continue
        text = (inspect.getdoc(value) or "").partition("Example:\n")[0]
        for argument, of in inspect.signature(value).parameters.items():
            if argument not in ("self", "cls") and of.kind not in (
                of.VAR_KEYWORD,
                of.VAR_POSITIONAL,
            ):
                assert re.search(rf"(?<!\w){argument}(?!\w)", text), f"{where}: {argument}"


def is_record(value: Any) -> bool:
    """Whether this is a class of fields alone, which are described where they are listed."""
    return inspect.isclass(value) and (issubclass(value, tuple) or hasattr(value, "__match_args__"))
