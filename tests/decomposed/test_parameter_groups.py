"""Groups for optimizers without decay on factors, and how far factors drift."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import spectral_kernels as sk
from tests.support.decomposed_models import LanguageModel, Mixed, mlp


def by_decay(groups: list[dict[str, Any]]) -> dict[float, list[str]]:
    for group in groups:
        assert len(group["params"]) == len(group["param_names"])
    return {group["weight_decay"]: group["param_names"] for group in groups}


def test_factors_do_not_decay() -> None:
    model = sk.decompose_model(Mixed(), {"blocks.0.*": 2, "attn": 3})
    found = by_decay(sk.parameter_groups(model, 0.1))
    factors = {
        f"{layer}.{f}"
        for layer in ("attn.in_proj", "attn.out_proj", "blocks.0.0", "blocks.0.2")
        for f in ("U", "Sigma", "Vh")
    }
    assert set(found[0.0]) == factors
    assert set(found[0.1]) == {name for name, _ in model.named_parameters()} - factors


def test_every_trainable_parameter_once_and_no_frozen_one() -> None:
    model = sk.decompose_model(LanguageModel(), {"embed": 3, "head": 3})
    model.hidden.weight.requires_grad_(False)
    model.embed.Sigma.requires_grad_(False)
    groups = sk.parameter_groups(model, 0.5, no_decay="*.bias")
    found = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in found}) == len(found)
    assert {id(p) for p in found} == {id(p) for p in model.parameters() if p.requires_grad}
    assert by_decay(groups) == {0.0: ["embed.U", "embed.Vh", "hidden.bias", "head.bias"]}


def test_patterns_of_further_parameters_reach_tied_ones_by_any_name() -> None:
    model = LanguageModel()
    found = by_decay(sk.parameter_groups(model, 0.5, no_decay=["head.weight", "*.bias"]))
    assert found == {0.5: ["hidden.weight"], 0.0: ["embed.weight", "hidden.bias", "head.bias"]}


@pytest.mark.parametrize(
    "make",
    [
        lambda g: torch.optim.AdamW(g, lr=0.1, foreach=True),
        lambda g: torch.optim.AdamW(g, lr=0.1, fused=True),
        lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, fused=True),
        lambda g: torch.optim.RMSprop(g, lr=0.1),
    ],
)
def test_optimizers_take_the_groups_and_their_names(make: Any) -> None:
    """Without gradients of the loss only decay moves a parameter."""
    model = sk.decompose_model(mlp(6, 5, 4), {"0": 2})
    optimizer = make(sk.parameter_groups(model, 0.5, no_decay="*.bias"))
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"2.weight"}
    assert "param_names" in optimizer.state_dict()["param_groups"][0]


def test_wrapped_models_give_clean_names() -> None:
    model = sk.decompose_model(mlp(6, 5, 4), {"0": 2})
    expected = by_decay(sk.parameter_groups(model, 0.5))
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert by_decay(sk.parameter_groups(wrapped, 0.5)) == expected


def test_groups_refuse_what_is_wrong() -> None:
    model = mlp(3, 3)
    with pytest.raises(ValueError, match=r"no_decay: the pattern '\*.bais' fits no parameter"):
        sk.parameter_groups(model, 0.1, no_decay="*.bais")
    for decay in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="expected a number of at least 0"):
            sk.parameter_groups(model, decay)
    with pytest.raises(ValueError, match="no trainable parameter"):
        sk.parameter_groups(model.requires_grad_(False), 0.1)
    with pytest.raises(TypeError, match="model is a dict"):
        sk.parameter_groups({"w": torch.ones(2, 2)}, 0.1)


def test_drift_against_numpy() -> None:
    model = sk.decompose_model(Mixed(), {"*": 1.0})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    drifts = sk.decomposition_drift(model)
    assert list(drifts)[:2] == ["conv", "attn.in_proj"]
    for name, drift in drifts.items():
        layer: Any = model.get_submodule(name)
        U, Sigma, Vh = (f.detach().double().numpy() for f in layer.factors())
        eye = np.eye(layer.rank)
        assert pytest.approx(np.linalg.norm(U.T @ U - eye, 2), rel=1e-12) == drift.U
        assert drift.Vh == pytest.approx(np.linalg.norm(Vh @ Vh.T - eye, 2), rel=1e-12)
        off = np.linalg.norm(Sigma - np.diag(np.diag(Sigma))) / np.linalg.norm(Sigma)
        assert drift.Sigma == pytest.approx(off, rel=1e-12)


def test_drift_of_groups_is_the_largest() -> None:
    layer: Any = sk.decompose_model(nn.Conv1d(4, 6, 3, groups=2), {"*": 1.0})
    with torch.no_grad():
        layer.U[1, :, 0] *= 2
        layer.Sigma[0, 0, 1] = layer.Sigma[0].norm()
    drift = sk.decomposition_drift(layer)[""]
    assert pytest.approx(3.0, abs=1e-5) == drift.U
    assert drift.Vh < 1e-6
    assert drift.Sigma == pytest.approx(math.sqrt(0.5), abs=1e-6)


def test_drift_says_nan_for_the_factor_that_has_it_alone() -> None:
    model = sk.decompose_model(mlp(5, 5, 5), {"*": 2})
    model[0].U.data[1, 1] = torch.nan
    model[2].Sigma.data[0, 0] = torch.inf
    first, second = sk.decomposition_drift(model).values()
    assert [math.isnan(x) for x in first] == [True, False, False]
    assert [math.isnan(x) for x in second] == [False, False, True]


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e200])
def test_drift_of_any_scale(scale: float) -> None:
    layer: Any = sk.decompose_model(nn.Linear(5, 5).double(), {"*": 2})
    with torch.no_grad():
        layer.Sigma.copy_(scale * torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double())
    assert sk.decomposition_drift(layer)[""].Sigma == pytest.approx(0.8 if scale else 0.0)


def test_drift_goes_into_a_record_by_one_line() -> None:
    model = sk.decompose_model(mlp(5, 4, 3), {"0": 2})
    scalars = sk.decomposition_drift(torch.compile(model)).scalars()
    assert list(scalars) == ["drift/0.U", "drift/0.Vh", "drift/0.Sigma"]
    monitor = sk.SpectralMonitor(model)
    frame = monitor.step(0, loss=1.0, **scalars)
    assert frame is not None
    assert frame.scalars == {"loss": 1.0, **scalars}
    single = sk.decomposition_drift(sk.decompose_model(nn.Linear(3, 3), {"*": 1}))
    assert list(single.scalars("d")) == ["d/U", "d/Vh", "d/Sigma"]


def test_drift_needs_a_decomposed_layer() -> None:
    with pytest.raises(ValueError, match="no decomposed layer"):
        sk.decomposition_drift(mlp(3, 3))
    with pytest.raises(TypeError, match="model is a dict"):
        sk.decomposition_drift({"w": torch.ones(2, 2)})


def test_decay_of_factors_is_a_penalty_on_the_rank() -> None:
    """||U||^2 + ||Sigma||^2 + ||Vh||^2 >= 3 sum sigma^(2/3), reached by even thirds of sigma."""
    generator = np.random.default_rng(0)

    def gap(U: Any, Sigma: Any, Vh: Any) -> float:
        values = np.linalg.svd(U @ Sigma @ Vh, compute_uv=False)[: len(Sigma)]
        norms = sum(float((factor**2).sum()) for factor in (U, Sigma, Vh))
        return norms - 3 * float((values ** (2 / 3)).sum())

    for _ in range(100):
        k = int(generator.integers(1, 5))
        factors = [generator.normal(size=size) for size in ((6, k), (k, k), (k, 5))]
        assert gap(*factors) > 0
    layer: Any = sk.decompose_model(nn.Linear(5, 6).double(), {"*": 3})
    U, Sigma, Vh = (factor.detach().numpy() for factor in layer.factors())
    third = np.diag(np.diag(Sigma) ** (1 / 3))
    assert abs(gap(U @ third, third, third @ Vh)) < 1e-12
    assert gap(U, Sigma, Vh) > 0.1


def test_what_a_parametrization_computes_a_factor_from_does_not_decay() -> None:
    model = sk.decompose_model(mlp(4, 3), {"*": 2})
    parametrizations.orthogonal(model[0], "U")
    parametrize.register_parametrization(model[0], "bias", nn.Identity())
    found = by_decay(sk.parameter_groups(model, 0.1))
    assert found[0.1] == ["0.parametrizations.bias.original"]
    assert sorted(found[0.0]) == ["0.Sigma", "0.Vh", "0.parametrizations.U.original"]


def test_a_decay_that_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"weight_decay is '0.1'; expected a number"):
        sk.parameter_groups(mlp(3, 3), "0.1")
    assert sk.parameter_groups(mlp(3, 3), np.float32(0.5))[0]["weight_decay"] == 0.5
