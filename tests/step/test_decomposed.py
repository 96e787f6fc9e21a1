"""SpectralMonitor on decomposed layers: one matrix each, as if it were kept whole."""

from __future__ import annotations

import copy
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.decomposed.layers.attention import DecomposedMultiheadAttention
from spectral_monitor.decomposed.layers.conv import DecomposedConv1d, DecomposedConv2d
from spectral_monitor.decomposed.layers.embedding import DecomposedEmbedding
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.figures.plots import plot_run
from spectral_monitor.figures.report import write_report
from spectral_monitor.model.registry import MatrixView
from spectral_monitor.model.rules import default_registry
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.final_agreement import agreement_with_final
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.bounds import estimate_from_leading
from spectral_monitor.step.frame import SpectralFrame
from spectral_monitor.step.moved_bounds import moved
from spectral_monitor.step.rows import leading_rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS, Decomposed
from spectral_kernels.runtime.numerics import default_rtol
from tests.support.decomposed_models import layer, product
from tests.support.device_steps import LateStreams, as_device
from tests.support.monitored import METHODS, Net, due, held_bytes, truth, update

# Names of `Net` whose layers `decomposed` replaces.
LAYERS = (
    "embed",
    "block.self_attn.in_proj",
    "block.self_attn.out_proj",
    "block.linear1",
    "block.linear2",
    "head",
)


def decomposed(dense: Net, rank: float | None = None) -> Net:
    """The same model with all its layers decomposed."""
    model = copy.deepcopy(dense)
    block: Any = model.block
    model.embed = DecomposedEmbedding.from_embedding(model.embed, rank)  # type: ignore[assignment]
    block.self_attn = DecomposedMultiheadAttention.from_attention(block.self_attn, rank)
    block.linear1 = DecomposedLinear.from_linear(block.linear1, rank)
    block.linear2 = DecomposedLinear.from_linear(block.linear2, rank)
    model.head = DecomposedLinear.from_linear(model.head, rank)  # type: ignore[assignment]
    return model


def weight_of(layer_name: str) -> str:
    """The name of a layer's weight, which is the one from before the decomposition."""
    return f"{layer_name}.weight".replace("in_proj.weight", "in_proj_weight")


def follow(twin: nn.Module, model: nn.Module) -> None:
    """Give a dense model the weights of a decomposed one."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, DecomposedLayer):
                target = twin.get_parameter(weight_of(name))
                target.copy_(product(model, name).reshape(target.shape))


def assert_within_bounds(frame: SpectralFrame, model: nn.Module) -> None:
    for name, row in frame.matrices.items():
        A = product(model, name)
        expected = truth(A)
        S = expected.pop("singular_values")
        assert row.shape == tuple(A.shape)
        assert len(row.singular_values) <= layer(model, name).rank
        error = np.abs(row.singular_values - S[: len(row.singular_values)])
        assert (error <= row.singular_value_bounds).all(), name
        for metric, value in expected.items():
            assert abs(getattr(row, metric) - value) <= row.bounds[metric], (name, metric)
        rank = np.count_nonzero(default_rtol(*row.shape, torch.float32) * S[0] < S)
        assert abs(row.numerical_rank - rank) <= row.bounds["numerical_rank"], name
        assert row.normalized_stable_rank == row.stable_rank / min(row.shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [None, 0.4])
def test_training_is_followed_within_the_bounds(method: Any, rank: Any, backend: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(24), rank)
    watch = SpectralMonitor(model, every=1, method=method)
    assert [matrix.name for matrix in watch.matrices] == [weight_of(name) for name in LAYERS]
    for seed in range(25):
        update(model, seed)
        frame = due(watch.step())
        assert_within_bounds(frame, model)
        for name, row in frame.matrices.items():
            assert len(row.singular_values) == layer(model, name).rank
            if method == "tracked":
                # The tolerance of the tracker, and rounding.
                assert row.singular_value_bounds.max() <= 1.01e-3 * row.spectral_norm
            if method == "exact":
                # 8 eps of the solver; of the core twice 8 for its bases and 1 for its rounding.
                assert row.singular_value_bounds.max() <= 3e-6 * row.spectral_norm


@pytest.mark.parametrize("options", [{"k": 3}, {"k": 3, "method": "randomized"}])
def test_a_few_leading_triplets(options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(24), 0.5)
    watch = SpectralMonitor(model, **{"every": 1, **options})
    for seed in range(8):
        update(model, seed)
        frame = due(watch.step())
        assert_within_bounds(frame, model)
        assert all(len(row.singular_values) == 3 for row in frame.matrices.values())


def assert_same_meetings(frame: SpectralFrame, other: SpectralFrame, tolerance: float) -> None:
    """Alignment and agreement of vectors that both frames can tell apart."""
    compared = 0

    def check(mine: Any, theirs: Any, *names: str) -> None:
        nonlocal compared
        count = min(len(mine), len(theirs))
        clear = np.ones(count, dtype=bool)
        for name in names:
            flags = frame.identifiable[name][:count] & other.identifiable[name][:count]
            clear[: len(flags)] &= flags
            clear[len(flags) :] = False
        compared += int(clear.sum())
        np.testing.assert_allclose(mine[:count][clear], theirs[:count][clear], atol=tolerance)

    assert frame.alignment.keys() == other.alignment.keys()
    for pair, diagonal in frame.alignment.items():
        check(diagonal, other.alignment[pair], *(p.partition("[")[0] for p in pair))
    for name, diagonal in frame.agreement.items():
        check(diagonal, other.agreement[name], name)
    assert compared


@pytest.mark.parametrize("rank", [None, 0.4])
@pytest.mark.parametrize("reference", ["init", "previous"])
def test_meetings_are_those_of_the_recomposed_model(rank: Any, reference: Any) -> None:
    torch.manual_seed(0)
    dense = Net(16).double()
    model = decomposed(dense, rank)
    follow(dense, model)
    # In float64 nothing but the path differs.
    watch = SpectralMonitor(model, every=1, method="exact", reference=reference)
    other = SpectralMonitor(dense, every=1, method="exact", reference=reference)
    assert other.explain().count("->") == watch.explain().count("->")
    for seed in range(6):
        update(model, seed)
        follow(dense, model)
        frame, expected = due(watch.step()), due(other.step())
        if seed or reference == "init":
            assert_same_meetings(frame, expected, 1e-6)
        for name, row in frame.matrices.items():
            twin = expected.matrices[name]
            assert row.kind == twin.kind
            for metric in METRICS:
                # What a product of low rank has below its k values is rounding.
                a, b = getattr(row, metric), getattr(twin, metric)
                assert a == pytest.approx(b, rel=1e-9, abs=1e-9), (name, metric)


def test_tracked_vectors_meet_as_exact_ones(backend: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(16), 0.5)
    tracked = SpectralMonitor(model, every=1, tolerance=1e-6)
    exact = SpectralMonitor(model, every=1, method="exact")
    kept: list[Any] = []
    for seed in range(12):
        update(model, seed)
        frame, expected = due(tracked.step()), due(exact.step())
        # Of vectors 1e-2 apart relative to sigma_1 a bound of 1e-6 leaves 1e-4.
        for name, values in frame.agreement.items():
            S = expected.matrices[name].singular_values
            gaps = np.abs(np.diff(S, append=0.0)) > 1e-2 * S[0]
            clear = gaps & np.concatenate([[True], gaps[:-1]])
            np.testing.assert_allclose(values[clear], expected.agreement[name][clear], atol=1e-3)
        kept.append(tracked._solver._cores)  # type: ignore[attr-defined]
        assert all(row.finite for row in frame.matrices.values())
    # Meetings rely on vectors that stay where they are.
    assert len({id(part.Vh) for x in kept for part in x._lifted}) == len(LAYERS) + len(
        tracked.parts
    )


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
    assert "a step waits for its numbers: cores of decomposed layers" in told


def test_a_device_leaves_the_step_to_the_monitor() -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 5)
    streams = LateStreams()
    watch, other = (
        as_device(SpectralMonitor(model, every=1), streams),
        SpectralMonitor(model, every=1),
    )
    assert "waits for its numbers: cores of decomposed layers" in watch.explain()
    assert "packed copy" not in watch.memory().kept
    for seed in range(3):
        update(model, seed)
        frame, expected = due(watch.step()), due(other.step())
        assert frame.arrived
        assert repr(frame.to_dict()["matrices"]) == repr(expected.to_dict()["matrices"])
    assert not streams.log


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 0.5).to(dtype)
    watch = SpectralMonitor(model, every=1)
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * torch.randn_like(p)
        frame = due(watch.step())
        assert_within_bounds(frame, model)
        kind = np.float64 if dtype == torch.float64 else np.float32
        assert all(row.singular_values.dtype == kind for row in frame.matrices.values())


def test_all_values_of_a_low_rank_have_vectors_but_one_that_may_be_zero() -> None:
    model = nn.Sequential(DecomposedLinear(8, 6, rank=3))
    head = layer(model, "0")
    with torch.no_grad():
        head.Sigma.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    watch = SpectralMonitor(model, every=1, method="exact", pairs=None)
    # Not as if the spectrum went on after k leading values.
    assert due(watch.step()).identifiable["0.weight"].tolist() == [True, True, True]
    with torch.no_grad():
        head.Sigma[-1, -1] = 1e-12
    watch = SpectralMonitor(model, every=1, method="exact", pairs=None)
    assert due(watch.step()).identifiable["0.weight"].tolist() == [True, True, False]


def test_chance_knows_the_rank() -> None:
    model = nn.Sequential(DecomposedLinear(40, 30, rank=4))
    watch = SpectralMonitor(model, every=1, watch=("weights", "updates"))
    chance = due(watch.step()).chance
    assert chance.overlap["0.weight[update]"] == pytest.approx((4 / 30, 4 / 40))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", Decomposed._fields)
def test_a_factor_with_nan_and_its_return(method: Any, factor: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12))
    watch, other = (
        SpectralMonitor(model, every=1, method=method),
        SpectralMonitor(model, every=1, method=method),
    )
    bad = getattr(model.block.linear1, factor)
    kept = bad.detach().clone()
    before = due(other.step())
    bad.data[1, 1] = math.nan
    frame = due(watch.step())
    for name, row in frame.matrices.items():
        if name == "block.linear1.weight":
            assert not row.finite
            assert np.isnan(row.singular_values).all()
            assert math.isnan(row.stable_rank)
        else:
            np.testing.assert_array_equal(
                row.singular_values, before.matrices[name].singular_values
            )
    bad.data.copy_(kept)
    frame = due(watch.step())
    assert all(row.finite for row in frame.matrices.values())
    assert_within_bounds(frame, model)
    assert all(values[0] > 0.9 for values in frame.agreement.values())


@pytest.mark.parametrize("method", METHODS)
def test_new_factors(method: Any) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 5)
    watch = SpectralMonitor(model, every=1, method=method)
    due(watch.step())
    head = layer(model, "head")
    head.set_factors(torch.randn(7, 5), torch.randn(5, 5), torch.randn(5, 12))
    assert_within_bounds(due(watch.step()), model)
    state = watch.state_dict()
    head.set_factors(torch.randn(7, 3), torch.randn(3, 3), torch.randn(3, 12))
    with pytest.warns(UserWarning, match=r"head.weight: its factors were \(7, 5\), \(5, 5\), "
                      r"\(5, 12\) .* are \(7, 3\), .*; make a new SpectralMonitor"):  # fmt: skip
        frame = due(watch.step())
    assert [n for n, row in frame.matrices.items() if not row.finite] == ["head.weight"]
    with pytest.raises(ValueError, match=r"head.weight: \(7, 12\) as factors of k = 5 in the "
                       r"state, \(7, 12\) as factors of k = 3 here"):  # fmt: skip
        SpectralMonitor(model, every=1, method=method).load_state_dict(state)
    assert_within_bounds(due(SpectralMonitor(model, every=1, method=method).step()), model)


@pytest.mark.parametrize("method", METHODS)
def test_layers_replaced_during_a_run(method: Any) -> None:
    """What left the model is not measured as if it were still there."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 4)))
    for change in (
        lambda: sk.decompose_model(model, {"1.0": 2}),
        lambda: sk.recompose_model(model),
        lambda: model.__setitem__(1, nn.Sequential(nn.Bilinear(5, 2, 4))),
    ):
        watch = SpectralMonitor(model, every=1, method=method, pairs=None)
        due(watch.step())
        change()
        with pytest.warns(UserWarning, match=r"1.0.weight: 1.0 was a \w+ and is a \w+ now; make a"):
            frame = due(watch.step())
        assert [row.finite for row in frame.matrices.values()] == [True, False]


def test_a_wrapper_is_no_replacement() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    watch = SpectralMonitor(model, every=1)
    inner = model[1]
    model[1] = nn.Sequential(inner)
    with torch.no_grad():
        inner.weight.zero_()
    assert due(watch.step()).matrices["1.weight"].spectral_norm == 0.0


def test_a_state_of_the_dense_model_is_refused() -> None:
    dense = nn.Sequential(nn.Linear(6, 5))
    model = nn.Sequential(DecomposedLinear.from_linear(dense[0]))  # type: ignore[arg-type]
    state = SpectralMonitor(dense, every=1).state_dict()
    with pytest.raises(ValueError, match=r"\(5, 6\) in the state, \(5, 6\) as factors of k = 5"):
        SpectralMonitor(model, every=1).load_state_dict(state)


def test_updates_are_differences_of_products() -> None:
    torch.manual_seed(0)
    model = decomposed(Net(16), 0.5).double()
    watch = SpectralMonitor(
        model, every=1, method="exact", watch=("weights", "updates", "gradients")
    )
    assert not any(m.name.endswith("[gradient]") for m in watch._over_time.changes.matrices)
    reasons = {row.name: row.reason for row in watch.skipped}
    assert "its factors have gradients" in reasons["head.weight[gradient]"]
    assert "head.weight[gradient]" in watch.explain()
    first = due(watch.step())
    assert not first.matrices["head.weight[update]"].finite
    for seed in range(3):
        before = {name: product(model, name) for name in LAYERS}
        update(model, seed)
        frame = due(watch.step())
        for name in LAYERS:
            row = frame.matrices[f"{weight_of(name)}[update]"]
            change = product(model, name) - before[name]
            U, S, Vh = torch.linalg.svd(change, full_matrices=False)
            assert row.kind == "update"
            assert row.shape == tuple(change.shape)
            k = len(row.singular_values)
            assert k == min(*change.shape, 2 * layer(model, name).rank)
            np.testing.assert_allclose(row.singular_values, S[:k], atol=1e-9 * float(S[0]))
            # The ten leading directions, or as many as there are, with those of the weight.
            left, _, right = torch.linalg.svd(product(model, name), full_matrices=False)
            width = min(10, k, layer(model, name).rank)
            expected = (
                float((U[:, :width].mT @ left[:, :width]).square().sum()) / width,
                float((Vh[:width] @ right[:width].mT).square().sum()) / width,
            )
            assert frame.overlap[f"{weight_of(name)}[update]"] == pytest.approx(expected, abs=1e-6)


def test_no_update_is_zero() -> None:
    watch = SpectralMonitor(decomposed(Net(12), 4), every=1, watch=("weights", "updates"))
    watch.step()
    row = due(watch.step()).matrices["head.weight[update]"]
    assert (row.spectral_norm, row.effective_rank, row.bounds["effective_rank"]) == (0, 0, 0)


def test_updates_of_low_precision_keep_small_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(DecomposedLinear(40, 30, bias=False))
    watch = SpectralMonitor(model, every=1, watch=("weights", "updates"))
    watch.step()
    before = product(model, "0")
    with torch.no_grad():
        for p in model.parameters():
            p += 1e-5 * torch.randn_like(p)
    row = due(watch.step()).matrices["0.weight[update]"]
    S = np.linalg.svd((product(model, "0") - before).numpy(), compute_uv=False)
    # A difference of recomposed float32 matrices would have lost three digits.
    assert np.abs(row.singular_values - S).max() < 1e-5 * S[0]


@pytest.mark.parametrize("rank", [None, 0.25])
@pytest.mark.parametrize("options", [{}, {"k": 8}, {"method": "exact"}, {"method": "randomized"}])
def test_the_memory_that_is_told(rank: Any, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(96, 256), nn.Linear(256, 96), nn.Linear(96, 96)).requires_grad_(
        False
    )
    for i in range(3):
        model[i] = DecomposedLinear.from_linear(model[i], rank)  # type: ignore[arg-type]
    watch = SpectralMonitor(model, watch=("weights", "updates"), **{"every": 1, **options})
    told = watch.memory()
    factors = sum(p.nbytes for name, p in model.named_parameters() if not name.endswith("bias"))
    assert sum(told.weights.values()) == factors
    for _ in range(3):
        for p in model.parameters():
            p.add_(1e-4 * torch.randn(p.shape))
        watch.step()
    watch._frame = None
    held = held_bytes(watch, {p.untyped_storage().data_ptr() for p in model.parameters()})
    # Held: 1.003 to 1.022 times. A few numbers for each value come on top.
    assert told.total <= held <= 1.05 * told.total
    assert watch.memory().total == told.total


@pytest.mark.parametrize("method", METHODS)
def test_resuming_gives_the_same_numbers(method: Any) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 0.5)
    options: dict[str, Any] = {"method": method, "watch": ("weights", "updates")}
    watch = SpectralMonitor(model, **{"every": 1, **options})
    for seed in range(4):
        update(model, seed)
        watch.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "monitor": watch.state_dict()}, file)
    frames = []
    for seed in range(4, 7):
        update(model, seed)
        frames.append(due(watch.step()).to_dict())
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = decomposed(Net(12), 0.5)
    resumed = SpectralMonitor(other, **{"every": 1, **options})
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["monitor"])
    for seed, expected in zip(range(4, 7), frames, strict=True):
        update(other, seed)
        frame = due(resumed.step()).to_dict()
        del frame["overhead"], expected["overhead"]
        assert repr(frame) == repr(expected)


@pytest.mark.parametrize("method", METHODS)
def test_vectors_of_the_whole_sides_are_saved(method: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 0.5)
    watch = SpectralMonitor(
        model, every=1, method=method, reference="final", recorder=Recorder(tmp_path / "run")
    )
    for seed in range(5):
        update(model, seed)
        watch.step(seed)
    watch.close()
    run = agreement_with_final(tmp_path / "run")
    for name in LAYERS:
        diagonal = run.agreement[weight_of(name)]
        assert diagonal.shape == (5, layer(model, name).rank)
        np.testing.assert_allclose(diagonal[-1], 1.0, atol=5e-3)
    # A folder is a reference for the same layers, kept dense.
    dense = Net(12)
    follow(dense, model)
    later = SpectralMonitor(
        dense, every=1, method="exact", reference=tmp_path / "run", include="head.*"
    )
    S = due(later.step()).matrices["head.weight"].singular_values
    agreement = due(later.frame).agreement["head.weight"]
    assert agreement[0] > 0.99 or S[0] - S[1] < 0.05 * S[0]


def test_svds_of_the_dense_weights_are_a_reference() -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 0.5)
    given = {weight_of(name): sk.svd(product(model, name).float()) for name in LAYERS}
    watch = SpectralMonitor(model, every=1, method="exact", reference=given)
    for name, values in due(watch.step()).agreement.items():
        assert len(values) == layer(model, name.removesuffix(".weight")).rank
        assert values[0] > 0.999


def test_a_run_is_recorded_and_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 5)
    watch = SpectralMonitor(model, every=1, recorder=Recorder(tmp_path / "run", precision="full"))
    frames = []
    for seed in range(4):
        update(model, seed)
        if seed == 2:
            model.head.Sigma.data[0, 0] = math.nan  # type: ignore[union-attr]
        frames.append(due(watch.step(seed, train_loss=1.0)))
    watch.close()
    run = load_run(tmp_path / "run")
    for name in run.matrices:
        assert run.singular_values[name].shape == (4, layer(model, name).rank)
        for t, frame in enumerate(frames):
            row = frame.matrices[name]
            np.testing.assert_array_equal(run.singular_values[name][t], row.singular_values)
    # A normalised rank is a share of the short side, not of k.
    share = frames[0].matrices["block.linear1.weight"].normalized_effective_rank
    assert share == pytest.approx(frames[0].matrices["block.linear1.weight"].effective_rank / 12)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "block.self_attn.in_proj_weight" in page
    assert len(plot_run(run).axes) >= 4


class NoProducts(TorchDispatchMode):
    """Fails where a tensor of the sides of a whole matrix comes to be."""

    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.sides = {m, n}
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor) and x.dim() >= 2 and not x.is_meta:
                self.seen += 1
                assert not self.sides <= set(x.shape), (func, tuple(x.shape))
        return result


@pytest.mark.parametrize("method", METHODS)
def test_the_matrix_is_never_formed(method: Any) -> None:
    m, n, k = 151, 139, 7
    layers = [DecomposedLinear(n, m, rank=k), DecomposedEmbedding(m, n, rank=k)]
    model = nn.ModuleList(layers)
    with NoProducts(m, n) as mode:
        watch = SpectralMonitor(model, every=1, method=method, watch=("weights", "updates"))
        for _ in range(3):
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.01 * torch.randn_like(p)
            due(watch.step())
        watch.state_dict()
        watch.explain()
    assert mode.seen > 50
    with pytest.raises(AssertionError), NoProducts(m, n):
        _ = layers[0].weight


@pytest.mark.parametrize("options", [{}, {"k": 12}], ids=["all values", "k"])
def test_cores_too_large_to_track_whole(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    weights = {
        "x.U": torch.linalg.qr(torch.randn(450, 390))[0],
        "x.Sigma": torch.diag(0.9 ** torch.arange(390.0)),
        "x.Vh": torch.linalg.qr(torch.randn(430, 390))[0].mT.contiguous(),
        "y.U": torch.randn(40, 9),
        "y.Sigma": torch.randn(9, 9),
        "y.Vh": torch.randn(9, 30),
        "z": torch.randn(12, 30),
    }
    watch = SpectralMonitor(weights, pairs=None, **{"every": 1, **options})
    for seed in range(3):
        torch.manual_seed(seed)
        for name in weights:
            weights[name] += 1e-3 * torch.randn(weights[name].shape) / weights[name].shape[0] ** 0.5
        frame = due(watch.step())
        for name, row in frame.matrices.items():
            if name == "z":
                continue
            A = torch.linalg.multi_dot(
                [weights[f"{name[0]}.{x}"].double() for x in Decomposed._fields]
            )
            expected = truth(A)
            S = expected.pop("singular_values")
            error = np.abs(row.singular_values - S[: len(row.singular_values)])
            assert (error <= row.singular_value_bounds).all(), name
            for metric, value in expected.items():
                assert abs(getattr(row, metric) - value) <= row.bounds[metric], (name, metric)
        assert frame.agreement["x.weight"][0] > 0.9
        vectors = watch._solver._cores._lifted[0]  # type: ignore[attr-defined]
        assert (vectors.U.shape[0], vectors.Vh.shape[1]) == (450, 430)


def test_bounds_move_with_the_error_of_a_core() -> None:
    generator = np.random.default_rng(0)
    for r, k, error in itertools.product((1, 2, 30), (1, 5, 30), (1e-6, 1e-3, 0.2, 3.0)):
        if k > r:
            continue
        c = np.sort(generator.exponential(size=r).astype(np.float32))[::-1].astype(np.float64)
        norm = float(np.linalg.norm(c))
        s = c[:k].astype(np.float32)
        low, high = sk.bounds_from_leading_values(torch.tensor(s), norm, r)
        estimate = estimate_from_leading(s, norm, (r, 2 * r), (float(low), float(high)), rank=r)
        found = moved(estimate, s, (r, 2 * r), r, error)
        for _ in range(20):
            shift = generator.normal(size=r)
            shift *= error * generator.uniform() / np.linalg.norm(shift)
            sigma = np.sort(np.abs(c + shift))[::-1]
            expected = truth(torch.diag(torch.from_numpy(sigma.copy())))
            assert (np.abs(s - sigma[:k]) <= found.value_bounds).all()
            for metric, value, bound in zip(METRICS, found.values, found.bounds, strict=True):
                if metric == "numerical_rank":
                    floor = 2 * r * np.finfo(np.float32).eps * sigma[0]
                    expected[metric] = np.count_nonzero(sigma > floor)
                assert abs(value - expected[metric]) <= bound, (metric, r, k, error)


def test_rows_of_leading_triplets_carry_the_error_of_their_core() -> None:
    (matrix,) = SpectralMonitor(nn.Linear(8, 6, bias=False), every=1, pairs=None).matrices
    values, norm = torch.tensor([2.0, 1.0]), torch.tensor([2.5], dtype=torch.float64)

    def row(error: float):
        (found,) = leading_rows(
            [matrix], "randomized", [values], norm, finite=[True], work=[""], errors=[error]
        ).values()
        return found

    plain, widened = row(0.0), row(0.25)
    assert widened.bounds["spectral_norm"] == pytest.approx(plain.bounds["spectral_norm"] + 0.25)
    np.testing.assert_allclose(
        widened.singular_value_bounds, plain.singular_value_bounds + 0.25, rtol=1e-6
    )
