"""Which matrices decomposed layers are to a monitor, and what they are called."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
from spectral_monitor.decomposed.layers.conv import DecomposedConv1d, DecomposedConv2d
from spectral_monitor.decomposed.layers.embedding import DecomposedEmbedding
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.model.matrix import MatrixView
from spectral_monitor.model.rules import default_registry
from spectral_monitor.monitor import SpectralMonitor
from torch import Tensor, nn

from tests.support.decomposed_models import LAYERS, decomposed, product, weight_of
from tests.support.device_steps import LateStreams, as_device, assert_same_frames
from tests.support.monitored import Net, due, update


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 12, (3, 5), groups=2)
        self.last = nn.Conv2d(12, 6, 1)


def test_convolutions_and_their_groups() -> None:
    torch.manual_seed(0)
    dense = Convolutions().double()
    model = copy.deepcopy(dense)
    for name, child in dense.named_children():
        setattr(model, name, DecomposedConv2d.from_conv(child, 0.75))
    watch, other = (SpectralMonitor(m, every=1, method="exact") for m in (model, dense))
    names = ["first.weight", "grouped.weight[group 0]", "grouped.weight[group 1]", "last.weight"]
    assert [m.name for m in watch.matrices] == names
    assert [m.kind for m in watch.matrices] == ["conv"] * 4
    assert [m.shape for m in watch.matrices] == [(8, 27), (6, 60), (6, 60), (6, 12)]
    with torch.no_grad():
        for child in model.children():
            child.U += 0.1 * torch.randn_like(child.U)
        for name, child in model.named_children():
            dense.get_parameter(f"{name}.weight").copy_(child.weight)
    frame, expected = due(watch.step()), due(other.step())
    # Output channels 0:4 and 4:8 of the first layer meet the centre taps of the two groups.
    assert frame.alignment.keys() == expected.alignment.keys()
    assert len(frame.alignment) == 4
    for key, values in frame.alignment.items():
        count = min(len(values), 4)
        np.testing.assert_allclose(values[:count], expected.alignment[key][:count], atol=1e-8)
    for name, row in frame.matrices.items():
        twin_row = expected.matrices[name]
        k = len(row.singular_values)
        np.testing.assert_allclose(row.singular_values, twin_row.singular_values[:k], atol=1e-12)
        assert row.shape == twin_row.shape


def test_one_dimensional_convolutions_have_a_centre() -> None:
    model = nn.Sequential(
        DecomposedConv1d(2, 4, 3, rank=2), nn.ReLU(), DecomposedConv1d(4, 5, 3, rank=3)
    )
    watch = SpectralMonitor(model, every=1)
    assert [m.source.centre for m in watch.matrices] == [1, 1]
    (pair,) = watch.pairs
    assert [len(port) for port in pair.ports] == [4, 4]
    assert len(due(watch.step()).alignment[pair.key]) == 2


def test_neighbours_may_be_dense() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(5, 7)).double()
    model = copy.deepcopy(dense)
    model[1] = DecomposedLinear.from_linear(dense[1])  # type: ignore[arg-type]
    watch, other = (SpectralMonitor(m, every=1, method="exact") for m in (model, dense))
    assert [p.key for p in watch.pairs] == [p.key for p in other.pairs]
    frame, expected = due(watch.step()), due(other.step())
    for key, values in frame.alignment.items():
        np.testing.assert_allclose(values, expected.alignment[key], atol=1e-9)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = DecomposedEmbedding(11, 6, rank=4)
        self.inner = nn.Linear(6, 6)
        self.head = DecomposedLinear(6, 11, bias=False, rank=4)
        self.head.U, self.head.Sigma, self.head.Vh = self.embed.factors()


def test_shared_factors_are_one_matrix() -> None:
    watch = SpectralMonitor(Tied(), every=1)
    assert [(m.name, m.aliases) for m in watch.matrices] == [
        ("embed.weight", ("head.weight",)),
        ("inner.weight", ()),
    ]
    assert [p.key for p in watch.pairs] == [
        ("embed.weight", "inner.weight"),
        ("inner.weight", "embed.weight"),
    ]
    assert [m.name for m in SpectralMonitor(Tied(), every=1, include="head.*").matrices] == [
        "embed.weight"
    ]
    apart = Tied()
    apart.head.Sigma = nn.Parameter(apart.head.Sigma.detach().clone())
    assert len(SpectralMonitor(apart, every=1).matrices) == 3


def test_factors_are_told_apart_from_matrices() -> None:
    watch = SpectralMonitor(decomposed(Net(12), 5), every=1)
    told = watch.explain()
    assert "kept as U Sigma Vh with k = 5" in told
    for factor in ("U", "Sigma", "Vh"):
        (row,) = [x for x in watch.skipped if x.name == f"block.linear1.{factor}"]
        assert row.reason == "a factor of block.linear1.weight"
        assert not row.is_layer
    assert "a step waits for its numbers: the weights are on the device 'cpu'" in told


@pytest.mark.parametrize("options", [{}, {"k": 3}, {"reference": "previous"}], ids=str)
def test_a_device_takes_steps_of_factors_launch_by_launch(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 5)
    streams = LateStreams()
    watch, other = (
        as_device(SpectralMonitor(model, **{"every": 1, **options}), streams),
        SpectralMonitor(model, **{"every": 1, **options}),
    )
    assert sum(watch.memory().kept["packed copy"].values()) > 0
    for seed in range(5):
        update(model, seed)
        frame, expected = due(watch.step()), due(other.step())
        assert frame.arrived == (seed == 0 and options.get("reference") == "previous")
        assert_same_frames(frame, expected)
    assert "the host waits in it: which factors of decomposed layers need" in watch.explain()
    assert "record" not in streams.log
    assert "landing" in streams.log


@pytest.mark.parametrize("pattern", ["*.weight", "head.weight", "block.*"])
def test_patterns_fit_the_product(pattern: str) -> None:
    model = decomposed(Net(12))
    chosen = {m.name for m in SpectralMonitor(model, every=1, include=pattern).matrices}
    # As of the dense model: ``in_proj_weight`` is not ``*.weight``.
    dense = SpectralMonitor(Net(12), every=1, include=pattern).matrices
    assert chosen == {m.name for m in dense}
    left = {m.name for m in SpectralMonitor(model, every=1, exclude="head.weight").matrices}
    assert left == {weight_of(name) for name in LAYERS[:-1]}
    with pytest.raises(ValueError, match=r"include: .*'head.wieght'"):
        SpectralMonitor(model, every=1, include="head.wieght")


def test_an_excluded_layer_hides_its_neighbours() -> None:
    model = nn.Sequential(*(DecomposedLinear(6, 6, rank=3) for _ in range(3)))
    watch = SpectralMonitor(model, every=1, exclude="1.weight")
    assert not watch.pairs
    assert watch.rejected_pairs[0].reason == "1.weight between them is not watched"


def test_a_factor_can_be_asked_for_by_a_rule() -> None:
    registry = default_registry()
    registry.register("*.Sigma", lambda info: [MatrixView("core")])
    watch = SpectralMonitor(DecomposedLinear(6, 5, rank=3), every=1, registry=registry)
    assert [(m.name, m.shape) for m in watch.matrices] == [("weight", (5, 6))]
    watch = SpectralMonitor(
        nn.Sequential(DecomposedLinear(6, 5, rank=3)), every=1, registry=registry, pairs=None
    )
    assert [(m.name, m.shape, m.kind) for m in watch.matrices] == [
        ("0.weight", (5, 6), "linear"),
        ("0.Sigma", (3, 3), "core"),
    ]
    due(watch.step())


def test_a_rule_that_turns_the_weight_is_refused() -> None:
    registry = default_registry()
    registry.register(DecomposedLinear, lambda info: [MatrixView("linear", lambda t: t.mT)])
    with pytest.raises(ValueError, match=r"the rule made 1 matrices, this one \(6, 5\); expected 1 "
                       r"of shape \(5, 6\)"):  # fmt: skip
        SpectralMonitor(DecomposedLinear(6, 5, rank=3), every=1, registry=registry)


def test_heads_of_the_fused_projection() -> None:
    model = decomposed(Net(12))
    fused = "block.self_attn.in_proj_weight"
    names = [f"{fused}[{r}, head {h}]" for h in (0, 1) for r in "qk"]
    (pair,) = [
        p for p in SpectralMonitor(model, every=1).pairs if p.key == (f"{fused}[q]", f"{fused}[k]")
    ]
    assert [port.label for port in pair.ports] == names
    # Their vectors are those of the blocks of the product.
    frame = due(SpectralMonitor(model, every=1, method="exact").step())
    W = product(model, "block.self_attn.in_proj").numpy()
    (U, _, _), (K, _, _) = (np.linalg.svd(W[i : i + 12].reshape(2, 6, 12)) for i in (0, 12))
    expected = np.abs(np.diagonal(U.swapaxes(1, 2) @ K, axis1=1, axis2=2)).mean(axis=0)
    np.testing.assert_allclose(frame.alignment[pair.key], expected, atol=2e-3)
    watch = SpectralMonitor(model, every=1, include="*in_proj_weight[q, head 1]", pairs=None)
    (block,) = watch.matrices
    assert (block.name, block.shape, block.rank) == (names[2], (6, 12), 6)
    row = due(watch.step()).matrices[block.name]
    S = np.linalg.svd(product(model, "block.self_attn.in_proj")[6:12].numpy(), compute_uv=False)
    assert (np.abs(row.singular_values - S) <= row.singular_value_bounds).all()


def test_attention_with_projections_of_their_own() -> None:
    model = DecomposedMultiheadAttention(8, 2, kdim=6, vdim=5)
    dense = nn.MultiheadAttention(8, 2, kdim=6, vdim=5)
    watch, other = SpectralMonitor(model, every=1), SpectralMonitor(dense, every=1)
    assert [p.key for p in watch.pairs] == [p.key for p in other.pairs]
    assert [(m.name, m.kind) for m in watch.matrices] == [(m.name, m.kind) for m in other.matrices]


def test_a_state_dict_has_the_layers_too() -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 5)
    weights: dict[str, Tensor] = dict(model.state_dict())
    watch = SpectralMonitor(weights, every=1, heads={"*.in_proj.weight": 2})
    # Nothing tells the fused projection of an attention from a linear layer of that name.
    assert [m.name for m in watch.matrices] == [f"{name}.weight" for name in LAYERS]
    own = SpectralMonitor(model, every=1)
    pairs = [tuple(name.replace("in_proj.", "in_proj_") for name in p.key) for p in watch.pairs]
    assert pairs == [p.key for p in own.pairs]
    weights["head.Sigma"] = 2 * weights["head.Sigma"]
    row, before = (due(w.step()).matrices["head.weight"] for w in (watch, own))
    np.testing.assert_allclose(row.singular_values, 2 * before.singular_values, rtol=1e-3)
    watch = SpectralMonitor(
        {**weights, "embed.U": weights["embed.U"].to("meta")}, every=1, pairs=None
    )
    (row,) = [x for x in watch.skipped if x.name == "embed.weight"]
    assert row.reason.startswith("U: is on the meta device and has no values")
    # Names alone are no factors: these do not chain, and are three matrices.
    parts = {"x.U": torch.randn(5, 3), "x.Sigma": torch.randn(2, 3), "x.Vh": torch.randn(3, 6)}
    assert [m.name for m in SpectralMonitor(parts, every=1).matrices] == list(parts)


def test_groups_of_a_state_dict() -> None:
    layer = DecomposedConv2d(4, 6, 3, groups=2, rank=2)
    watch = SpectralMonitor({f"c.{name}": x for name, x in layer.state_dict().items()}, every=1)
    assert [(m.name, m.shape) for m in watch.matrices] == [
        ("c.weight[0]", (3, 18)),
        ("c.weight[1]", (3, 18)),
    ]


def test_wrapped_models_have_the_same_names() -> None:
    model = decomposed(Net(12), 4)
    names = [m.name for m in SpectralMonitor(model, every=1).matrices]
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert [m.name for m in SpectralMonitor(wrapped, every=1).matrices] == names
    model.block = torch.compile(model.block)  # type: ignore[assignment]
    assert [m.name for m in SpectralMonitor(model, every=1).matrices] == names
