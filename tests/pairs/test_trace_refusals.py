"""What a trace leaves behind, what it refuses, and how it is saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from spectral_monitor.pairs.tracing.map import Trace
from torch import Tensor, nn

import spectral_kernels as sk
from tests.support.traced import TOKENS, as_line, drawn


class Stateful(nn.Module):
    """Everything that a forward pass may change, and an error if asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: Tensor | None = None
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x
        self.new = x
        x = self.drop(self.norm(self.fc(x))) + torch.randn_like(x)
        if self.fail:
            raise RuntimeError("from the model")
        return x


@pytest.mark.parametrize("fail", [False, True])
def test_a_trace_leaves_nothing_behind(fail: bool) -> None:
    model = Stateful()
    model.drop.eval()
    model.fail = fail
    model(torch.randn(3, 4)).sum().backward() if not fail else None
    model.cache = None
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    attributes, generator = set(vars(model)), torch.get_rng_state()
    drawn_before = np.random.get_state()[1].copy()
    if fail:
        with pytest.raises(RuntimeError, match="from the model"):
            sk.trace(model, torch.randn(3, 4, generator=torch.Generator()))
    else:
        sk.trace(model, torch.randn(3, 4, generator=torch.Generator()))
    assert [m.training for m in (model, model.norm, model.drop)] == [True, True, False]
    assert set(vars(model)) == attributes
    assert model.cache is None
    assert torch.equal(torch.get_rng_state(), generator)
    assert (np.random.get_state()[1] == drawn_before).all()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert p.grad is None if grad is None else torch.equal(p.grad, grad)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_models_on_the_meta_device_wrapped_and_with_keywords() -> None:
    with torch.device("meta"):
        model = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False
        )
        x = torch.randn(1, 5, 8)
    real = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False
    )
    expected = drawn(real, torch.randn(1, 5, 8))
    assert drawn(model, src=x) == expected
    assert drawn(nn.DataParallel(real), torch.randn(1, 5, 8)) == expected
    assert len(expected) == 11


def test_a_trace_can_be_saved() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 12))
    traced = sk.trace(model, TOKENS)
    again = Trace.from_dict(json.loads(json.dumps(traced.to_dict())))
    assert [as_line(e, again) for e in again.edges] == [as_line(e, traced) for e in traced.edges]
    assert again.to_dict() == traced.to_dict()
    with pytest.raises(ValueError, match="version 0, expected 1"):
        Trace.from_dict({"version": 0})


def test_lazy_parameters_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"0\.weight is not initialised yet \(lazy\)"):
        sk.trace(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))


def test_what_cannot_be_followed_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"one row at least, got tensors of shape \(0, 4\)"):
        sk.trace(model, torch.randn(0, 4))
    scripted = nn.Sequential(torch.jit.trace(model, torch.randn(1, 4)))
    for watch in (sk.SpectralMonitor, sk.trace):
        with pytest.raises(TypeError, match=r"0 is a TorchScript module.*state_dict"):
            watch(scripted)


def test_pairs_that_are_no_trace_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    traced = sk.trace(model, torch.randn(1, 4))
    for given, told in [
        (traced.to_dict(), r"is read by spectral_kernels\.Trace\.from_dict"),
        ([traced], r"expected \(name, name of the next layer\), got Trace"),
        (3, r"expected \(name, name of the next layer\), got 3"),
    ]:
        with pytest.raises(TypeError, match=told):
            sk.SpectralMonitor(model, pairs=given)


def test_nested_tensors_end_and_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    rows = torch.nested.nested_tensor([torch.randn(n, 4) for n in (2, 3)], layout=torch.jagged)
    traced = sk.trace(model, rows)
    assert traced.edges == ()
    assert set(traced.ended) == {"aten::linear"}


def test_a_state_dict_has_no_forward_pass() -> None:
    with pytest.raises(TypeError, match="trace the module"):
        sk.trace({"a": torch.zeros(2, 2)}, torch.zeros(1))  # type: ignore[arg-type]
