"""What a traced pass leaves as it was, in models that write to more than their buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import spectral_kernels as sk
from tests.support.traced import Module, drawn

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
EDGE = {"feeds: a.weight[0:4, 0] -> b.weight[0, 0:4]"}


def two(forward: Callable[..., Tensor]) -> Module:
    torch.manual_seed(0)
    return Module(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))


def normalised(m: Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.a.weight.div_(m.a.weight.norm(dim=1, keepdim=True))
    return m.b(m.a(x))


def normalised_behind_autograd(m: Module, x: Tensor) -> Tensor:
    m.a.weight.data.div_(m.a.weight.data.norm(dim=1, keepdim=True))
    return m.b(m.a(x))


def other_memory(m: Module, x: Tensor) -> Tensor:
    m.b.weight.data = m.b.weight.data.clamp(-0.01, 0.01)
    return m.b(m.a(x))


def frozen_and_graded(m: Module, x: Tensor) -> Tensor:
    m.a.weight.requires_grad_(False)
    m.a.weight.grad.zero_()
    m.b.weight.grad = torch.ones(4, 4)
    return m.b(m.a(x))


@pytest.mark.parametrize(
    "forward", [normalised, normalised_behind_autograd, other_memory, frozen_and_graded]
)
def test_weights_that_the_pass_writes_to(forward: Callable[..., Tensor]) -> None:
    model = two(forward)
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = [p.data_ptr() for p in model.parameters()]
    assert drawn(model, X) == EDGE
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p.grad, torch.full_like(p, 2.0)) for p in model.parameters())


def test_rows_that_an_embedding_shortens() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=0.1), nn.Linear(4, 3))
    before = model[0].weight.clone()
    assert len(sk.trace(model, torch.arange(9)).edges) == 1
    assert torch.equal(model[0].weight, before)


def test_inputs_and_what_hangs_on_them() -> None:
    class Cache:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []
            self.sum = torch.zeros(2, 4)

    def forward(m: Module, x: Tensor, cache: Cache) -> Tensor:
        cache.seen.append(x)
        cache.sum += x
        return m.b(m.a(x.relu_()))

    given, cache = X.clone(), Cache()
    assert drawn(two(forward), given, cache) == EDGE
    assert torch.equal(given, X)
    assert cache.seen == []
    assert not cache.sum.any()


def test_caches_counts_and_generators_of_a_module() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        m.seen.append(x)
        m.biases["cpu"] = m.a.bias + 1
        m.counts["n"] += 1
        m.counts["inner"].add(3)
        m.keys[:2] = m.a(x)
        return m.b(m.a(x)) + torch.rand(4, generator=m.generator)

    model = two(forward)
    model.seen, model.biases, model.keys = [], {}, torch.zeros(3, 4)
    model.counts = {"n": 1, "inner": {1}}
    model.generator = torch.Generator().manual_seed(3)
    state, counts = model.generator.get_state(), model.counts
    assert drawn(model, X) == EDGE
    assert (model.seen, model.biases) == ([], {})
    assert model.counts is counts
    assert counts == {"n": 1, "inner": {1}}
    assert not model.keys.any()
    assert torch.equal(model.generator.get_state(), state)


def test_a_layer_that_merges_its_adapter_for_evaluation() -> None:
    class Merging(nn.Linear):
        merged = False

        def __init__(self) -> None:
            super().__init__(4, 4)
            self.down = nn.Parameter(torch.randn(2, 4))
            self.up = nn.Parameter(torch.randn(4, 2))

        def train(self, mode: bool = True) -> Merging:
            super().train(mode)
            if mode == self.merged:
                self.weight.data += (self.up @ self.down) * (-1 if mode else 1)
                self.merged = not mode
            return self

        def forward(self, x: Tensor) -> Tensor:
            if self.merged:
                return super().forward(x)
            return super().forward(x) + x @ self.down.T @ self.up.T

    model = nn.Sequential(Merging())
    before = model[0].weight.clone()
    assert drawn(model, X) == {"feeds: 0.down[0:2, 0] -> 0.up[0, 0:2]"}
    assert torch.equal(model[0].weight, before)
    assert not model[0].merged


def test_autocast_does_not_hide_weights_that_it_cast_before() -> None:
    model = two(lambda m, x: m.b(m.a(x)))
    with torch.autocast("cpu", torch.bfloat16):
        # Cast and remembered for the gradient.
        model(X)
        assert drawn(model, X) == EDGE
        assert drawn(model, X) == EDGE
        assert torch.is_autocast_cache_enabled()
        out = model(X).float().sum()
    out.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_models_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
        x = torch.randn(3, 4)
    assert drawn(model, x) == {"feeds: 0.weight[0:6, 0] -> 2.weight[0, 0:6]"}


def test_norms_that_count_in_evaluation_too() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        norm = m.norm
        h = functional.batch_norm(m.a(x), norm.running_mean, norm.running_var, training=True)
        return m.b(h)

    model = Module(forward, a=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), b=nn.Linear(4, 4))
    assert drawn(model, X) == EDGE
    assert not model.norm.running_mean.any()
    assert bool((model.norm.running_var == 1).all())
