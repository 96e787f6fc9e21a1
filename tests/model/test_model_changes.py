"""What becomes of a monitor when its model changes: picked up, or named, and never lost."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame
from torch import nn

import spectral_kernels as sk
from tests.support.monitored import Net, due

watching = partial(SpectralMonitor, every=1)
METHODS = ("tracked", "exact", "randomized")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 4, bias=False)))


def strictly(watch: SpectralMonitor) -> SpectralFrame:
    """A step without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return due(watch.step())


def values(weight: Any) -> np.ndarray:
    return np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)


class Wide(nn.Linear):
    """A layer of the same kind."""


REPLACED: dict[str, Callable[[nn.Sequential], Any]] = {
    "parameter": lambda m: setattr(m[0], "weight", nn.Parameter(torch.randn(6, 4))),
    "data": lambda m: setattr(m[0].weight, "data", torch.randn(6, 4)),
    "state dict": lambda m: m.load_state_dict(mlp().state_dict() | {"0.weight": torch.ones(6, 4)}),
    "assigned": lambda m: m.load_state_dict(
        {n: x + 1 for n, x in m.state_dict().items()}, assign=True
    ),
    "layer": lambda m: m.__setitem__(0, nn.Linear(4, 6)),
    "layer of a subclass": lambda m: m.__setitem__(0, Wide(4, 6)),
    "compiled layer": lambda m: m.__setitem__(
        0,
        torch.compile(nn.Linear(4, 6), backend="eager"),  # type: ignore[call-overload]
    ),
    "block": lambda m: m.__setitem__(2, nn.Sequential(nn.Linear(6, 4, bias=False))),
    "dtype": lambda m: m.double(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", REPLACED)
def test_what_takes_the_same_place_is_read_from_then_on(kind: str, method: Any) -> None:
    model = mlp()
    watch = watching(model, method=method)
    strictly(watch)
    for _ in range(2):
        REPLACED[kind](model)
        frame = strictly(watch)
        first = model[0]
        weights = {"0.weight": getattr(first, "_orig_mod", first).weight,
                   "2.0.weight": model[2][0].weight}  # fmt: skip
        for name, weight in weights.items():
            row, expected = frame.matrices[name], values(weight)
            assert not row.reason
            error = np.abs(row.singular_values - expected)
            assert (error <= row.singular_value_bounds + 1e-6).all()
    assert "came after" not in watch.explain()


GONE: dict[str, tuple[Callable[[nn.Sequential], Any], str]] = {
    "other shape": (lambda m: m.__setitem__(0, nn.Linear(4, 7)),
                    r"its shape was \(6, 4\) when the monitor was made and is \(7, 4\) now; make"),
    "other kind": (lambda m: m.__setitem__(0, nn.Bilinear(4, 4, 6)),
                   "0 was a Linear and is a Bilinear now; make a new SpectralMonitor"),
    "no layer": (lambda m: m.__delitem__(0), r"was \(6, 4\)|0 was a Linear and is a ReLU now"),
    "no weight": (lambda m: m[0].register_parameter("weight", None),
                  "the layer has no parameter weight any more; make a new SpectralMonitor"),
    "decomposed": (lambda m: sk.decompose_model(m, {"0": 2}),
                   "0 was a Linear and is a DecomposedLinear now"),
    "parametrized": (lambda m: nn.utils.parametrizations.spectral_norm(m[0]),
                     "weight is parametrized now; make a new"),
}  # fmt: skip


@pytest.mark.parametrize("kind", GONE)
def test_what_is_gone_is_a_row_that_says_so(kind: str) -> None:
    change, told = GONE[kind]
    model = mlp()
    watch = watching(model, pairs=None)
    strictly(watch)
    change(model)
    with pytest.warns(UserWarning, match=f"0.weight: {told}"):
        frame = due(watch.step())
    assert not frame.matrices["0.weight"].finite


def test_groups_of_another_number_are_another_kind() -> None:
    """The same shape, and other matrices in it."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    watch = watching(model, pairs=None)
    model[0] = nn.Conv2d(2, 8, 3)
    assert model[0].weight.shape == (8, 2, 3, 3)
    with pytest.warns(UserWarning, match="0 is another kind of Conv2d now"):
        watch.step()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 5)
        self.head = nn.Linear(5, 12, bias=False)
        self.head.weight = self.embed.weight


UNTIED: dict[str, Callable[[Any], Any]] = {
    "parameter": lambda m: setattr(m.head, "weight", nn.Parameter(torch.randn(12, 5))),
    "the first": lambda m: setattr(m.embed, "weight", nn.Parameter(torch.randn(12, 5))),
    "assigned": lambda m: m.load_state_dict(
        {n: x.clone() for n, x in m.state_dict().items()}, assign=True
    ),
    "layer": lambda m: setattr(m, "head", nn.Linear(5, 12, bias=False)),
}


@pytest.mark.parametrize("kind", UNTIED)
def test_tied_weights_that_are_two_now_are_named(kind: str) -> None:
    model = Tied()
    watch = watching(model, pairs=None)
    strictly(watch)
    UNTIED[kind](model)
    told = "head.weight: no longer tied with embed.weight; make a new SpectralMonitor to watch it"
    with pytest.warns(UserWarning, match=f"not watched: {told}") as caught:
        frame = due(watch.step())
    assert [w.filename for w in caught] == [__file__]
    np.testing.assert_allclose(frame.matrices["embed.weight"].singular_values,
                               values(model.embed.weight), rtol=1e-5)  # fmt: skip
    assert "1 parameters came after the monitor was made" in watch.explain()
    assert told.partition(": ")[2] in watch.explain()
    strictly(watch)


def test_tensors_of_a_mapping_are_untied_too() -> None:
    weights = {"a": torch.randn(4, 3)}
    weights["b"] = weights["a"]
    watch = watching(weights, pairs=None)
    assert watch.matrices[0].aliases == ("b",)
    weights["b"] = weights["a"].view(4, 3)
    strictly(watch)
    weights["b"] = weights["a"].clone()
    with pytest.warns(UserWarning, match="b: no longer tied with a"):
        watch.step()


def test_a_lazy_layer_is_named_when_it_has_its_shape() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LazyLinear(5))
    watch = watching(model)
    strictly(watch)
    assert "not initialised yet (lazy)" in watch.explain()
    model(torch.randn(2, 4))
    told = "1.weight: had no values when the monitor was made, and has some"
    with pytest.warns(UserWarning, match=told):
        watch.step()
    assert "1.weight" in watch.explain().partition("came after")[2].partition("\n  ")[2]
    strictly(watch)
    assert {m.name for m in watching(model).matrices} == {"0.weight", "1.weight"}


def test_layers_of_the_meta_device_are_named_when_they_are_loaded() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5, device="meta"))
    watch = watching(model)
    model[1].to_empty(device="cpu")
    nn.init.ones_(model[1].weight)
    with pytest.warns(UserWarning, match="1.weight: had no values when the monitor was made"):
        watch.step()


def test_what_is_added_is_named() -> None:
    model = mlp()
    watch = watching(model)
    strictly(watch)
    model.bias = nn.Parameter(torch.randn(3))
    strictly(watch)
    model.append(nn.Linear(4, 9))
    model.extra = nn.Parameter(torch.randn(3, 3))
    with pytest.warns(UserWarning, match="extra and 1 more: added since the monitor was made"):
        watch.step()
    assert "2 parameters came after the monitor was made" in watch.explain()
    strictly(watch)


def test_explain_tells_before_a_step_and_the_step_warns_all_the_same() -> None:
    model = mlp()
    watch = watching(model)
    model.extra = nn.Parameter(torch.randn(3, 3))
    assert "extra" in watch.explain()
    with pytest.warns(UserWarning, match="extra: added"):
        watch.step()


def test_wrapping_adds_nothing() -> None:
    model = mlp()
    watch = watching(model)
    model[0] = torch.compile(model[0], backend="eager")  # type: ignore[call-overload]
    frame = strictly(watch)
    assert all(row.finite for row in frame.matrices.values())
    model[0] = model[0]._orig_mod
    strictly(watch)


def test_an_unchanged_model_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    watch = watching(model)

    def refuse(*_: object) -> None:
        raise AssertionError("names are made")

    monkeypatch.setattr("spectral_monitor.model.model_changes._named", refuse)
    for _ in range(3):
        strictly(watch)
    model.head.weight = nn.Parameter(torch.randn(7, 12))
    with pytest.raises(AssertionError, match="names are made"):
        watch.step()
