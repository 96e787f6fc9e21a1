"""Weights that a layer computes of others: one matrix, raw or effective, nothing touched."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import spectral_kernels


def old(function: Callable[..., nn.Module], layer: nn.Module, **options: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(layer, **options)


class LoRA(nn.Module):
    """W + B A, as a parametrization."""

    def __init__(self, out: int, into: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(rank, into))
        self.lora_B = nn.Parameter(torch.randn(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.lora_B @ self.lora_A


class Counting(nn.Module):
    """Counts its calls, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * 2


def lora(layer: nn.Linear) -> nn.Module:
    size = (layer.out_features, layer.in_features)
    return parametrize.register_parametrization(layer, "weight", LoRA(*size, 2))


WAYS: dict[str, Callable[[], nn.Module]] = {
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)),
    "spectral_norm, transposed": lambda: parametrizations.spectral_norm(
        nn.ConvTranspose2d(8, 3, 3)
    ),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
    "weight_norm, whole": lambda: parametrizations.weight_norm(nn.Linear(27, 8), dim=None),
    "old spectral_norm": lambda: old(torch.nn.utils.spectral_norm, nn.Conv2d(3, 8, 3)),
    "old weight_norm": lambda: old(torch.nn.utils.weight_norm, nn.Linear(27, 8), dim=1),
    "prune": lambda: prune.l1_unstructured(nn.Conv2d(3, 8, 3), "weight", 0.5),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(27, 8)),
    "lora": lambda: lora(nn.Linear(27, 8)),
    "counting": lambda: parametrize.register_parametrization(
        nn.Linear(27, 8), "weight", Counting()
    ),
}
TOLD_BY_NAMES = [way for way in WAYS if way not in ("orthogonal", "lora", "counting")]


def evaluated(layer: nn.Module) -> Tensor:
    """The weight in evaluation, as PyTorch computes it for the layer."""
    into = 8 if isinstance(layer, nn.ConvTranspose2d) else 3
    shape = (1, layer.in_features) if isinstance(layer, nn.Linear) else (1, into, 5, 5)
    was = layer.training
    layer.eval()
    with torch.no_grad():
        layer(torch.zeros(shape))
        weight = layer.weight.clone()  # type: ignore[operator, union-attr]
    layer.train(was)
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)


@pytest.mark.parametrize("way", WAYS)
def test_the_effective_weight_is_one_matrix_of_the_layer(way: str) -> None:
    torch.manual_seed(0)
    layer = WAYS[way]()
    watch = SpectralMonitor(nn.Sequential(layer), pairs=None)
    shape = tuple(evaluated(layer).shape)
    assert [(m.name, m.shape, m.form) for m in watch.matrices] == [("0.weight", shape, "effective")]
    assert watch.matrices[0].kind == ("conv" if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
                                      else "linear")  # fmt: skip
    assert torch.allclose(watch.matrices[0].view(), evaluated(layer), atol=1e-6)
    # Every parameter is told of, once.
    told = {row.name: row.reason for row in watch.skipped}
    assert set(told) == {name for name, _ in nn.Sequential(layer).named_parameters()}
    assert all("0.weight" in told[name] for name in watch.matrices[0].made_of if name in told)
    assert not any(row.is_layer for row in watch.skipped)
    assert "effective: " in watch.explain()


@pytest.mark.parametrize("way", WAYS)
def test_the_raw_parameter_is_the_one_before(way: str) -> None:
    layer = WAYS[way]()
    watch = SpectralMonitor(nn.Sequential(layer), pairs=None, parametrized="raw")
    raw = watch.matrices[0]
    assert (raw.name, raw.parameter, raw.form) == ("0.weight[raw]", "0.weight", "raw")
    (name,) = raw.made_of
    expected = layer.get_parameter(name.removeprefix("0."))
    dense = expected.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else expected
    assert torch.equal(raw.view(), dense.flatten(1))
    others = [m.name for m in watch.matrices[1:]]
    inside = [f"0.parametrizations.weight.0.lora_{x}" for x in "AB"]
    assert others == (inside if way == "lora" else [])
    assert f"raw: {name} before" in watch.explain()
    only = SpectralMonitor(nn.Sequential(layer), include=name, parametrized="raw")
    assert [m.name for m in only.matrices] == ["0.weight[raw]"]


@pytest.mark.parametrize("way", WAYS)
def test_reading_the_effective_weight_moves_nothing(way: str) -> None:
    layer = WAYS[way]()
    layer.train()
    calls: list[str] = []
    for name, module in layer.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    state = torch.random.get_rng_state()
    watch = SpectralMonitor(nn.Sequential(layer), every=1)
    for _ in range(3):
        watch.step()
    after = layer.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert calls == []
    assert all(module.training for module in layer.modules())


def test_a_step_sees_what_training_did() -> None:
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(12, 8))
    watch = SpectralMonitor(nn.Sequential(layer), every=1, watch=("weights", "updates"))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(20, 12)).square().sum().backward()
        optimizer.step()
        frame = watch.step()
        assert frame is not None
        values = torch.as_tensor(frame.matrices["0.weight"].singular_values)
        assert torch.allclose(values, torch.linalg.svdvals(evaluated(layer)), atol=1e-5)
    assert frame is not None
    assert frame.matrices["0.weight[update]"].finite


def test_gradients_of_a_computed_weight_are_told_to_be_missing() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(12, 8))
    watch = SpectralMonitor(nn.Sequential(layer), watch=("weights", "gradients"))
    assert "0.weight[gradient]" in {row.name for row in watch.skipped}
    frame = watch.step()
    assert frame is not None
    assert list(frame.matrices) == ["0.weight"]


@pytest.mark.parametrize("shown", ["effective", "raw"])
@pytest.mark.parametrize("way", WAYS)
def test_a_state_dict_agrees_with_its_module(way: str, shown: str) -> None:
    torch.manual_seed(1)
    layer = WAYS[way]()
    model = nn.Sequential(layer)
    by_module = SpectralMonitor(model, pairs=None, parametrized=shown)  # type: ignore[arg-type]
    for state in (model.state_dict(), dict(sorted(model.state_dict().items()))):
        by_names = SpectralMonitor(state, pairs=None, parametrized=shown)  # type: ignore[arg-type]
        one, other = by_module.matrices[0], by_names.matrices[0]
        if way in TOLD_BY_NAMES or shown == "raw":
            assert (one.name, one.form) == (other.name, other.form)
        else:
            assert (other.name, other.form) == ("0.weight[raw]", "raw")
            assert "which names do not tell" in by_names.explain()
        # The names do not tell a transposed convolution.
        if way in TOLD_BY_NAMES and "transposed" not in way:
            assert one.shape == other.shape
            assert torch.allclose(one.view(), other.view(), atol=1e-6)


def test_neighbours_are_paired_through_a_parametrization() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 5)
    )
    for shown, middle in (("effective", "1.weight"), ("raw", "1.weight[raw]")):
        watch = SpectralMonitor(model, parametrized=shown)  # type: ignore[arg-type]
        assert [pair.key for pair in watch.pairs] == [
            ("0.weight", middle),
            (middle, "2.weight"),
        ]


def test_a_parametrization_that_fails_here_shows_the_raw_weight_and_says_why() -> None:
    class Fails(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise RuntimeError("not today")
            return weight

    layer = parametrize.register_parametrization(nn.Linear(4, 3), "weight", Fails())
    watch = SpectralMonitor(nn.Sequential(layer))
    assert [m.name for m in watch.matrices] == ["0.weight[raw]"]
    assert "cannot be computed here: RuntimeError: not today" in watch.explain()


def test_the_weight_stays_under_watch_when_the_parametrization_is_removed() -> None:
    for shown, name in (("effective", "0.weight"), ("raw", "0.weight[raw]")):
        mine = parametrizations.weight_norm(nn.Linear(4, 3))
        watch = SpectralMonitor(nn.Sequential(mine), parametrized=shown)  # type: ignore[arg-type]
        parametrize.remove_parametrizations(mine, "weight")
        frame = watch.step()
        assert frame is not None
        values = torch.as_tensor(frame.matrices[name].singular_values)
        assert torch.allclose(values, torch.linalg.svdvals(mine.weight.detach()), atol=1e-5)


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 6, 3)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(8, 6, 3)),
    "old spectral_norm": lambda: old(torch.nn.utils.spectral_norm, nn.Conv2d(8, 6, 3)),
    "old weight_norm": lambda: old(torch.nn.utils.weight_norm, nn.Conv2d(8, 6, 3)),
    "prune": lambda: prune.l1_unstructured(nn.Conv2d(8, 6, 3), "weight", 0.5),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(8, 6, 3)),
}


@pytest.mark.parametrize("shown", ["effective", "raw"])
@pytest.mark.parametrize("way", CHAINS)
def test_a_trace_goes_through_a_parametrized_weight_and_leaves_it(way: str, shown: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), CHAINS[way](), nn.Conv2d(6, 4, 3))
    model.train()
    x = torch.randn(1, 3, 9, 9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = list(model[1]._forward_pre_hooks.values())
    traced = spectral_kernels.trace(model, x)
    assert traced.unreached == ()
    watch = SpectralMonitor(model, pairs=traced, parametrized=shown)  # type: ignore[arg-type]
    middle = "1.weight" if shown == "effective" else "1.weight[raw]"
    assert [pair.key for pair in watch.pairs] == [("0.weight", middle), (middle, "2.weight")]
    assert all(torch.equal(model.state_dict()[name], x) for name, x in before.items())
    assert list(model[1]._forward_pre_hooks.values()) == hooks
    # Training goes on as before: the weight is computed anew at every pass.
    with torch.no_grad():
        raw = next(p for p in model[1].parameters() if p.dim() > 1)
        one, _ = model[1](torch.ones(1, 8, 5, 5)), raw.add_(torch.randn_like(raw))
        assert not torch.equal(model[1](torch.ones(1, 8, 5, 5)), one)
