"""SpectralMonitor on models that train."""

from __future__ import annotations

import copy
import gc
import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor, nn

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS
from tests.support.monitored import (
    METHODS,
    Net,
    assert_same,
    due,
    everything,
    held_bytes,
    truth,
    update,
)


def test_every_number_of_the_exact_method_is_within_its_bound(backend: str) -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1, method="exact")
    update(model, 0)
    frame = due(watch.step(loss=0.5))
    assert frame.scalars == {"loss": 0.5}
    assert len(frame.matrices) == 6
    for name, row in frame.matrices.items():
        expected = truth(model.get_parameter(name))
        bounds = row.bounds
        error = np.abs(row.singular_values - expected.pop("singular_values")).max()
        assert error <= bounds["singular_values"] < 1e-4 * row.spectral_norm
        for metric, value in expected.items():
            assert abs(getattr(row, metric) - value) <= bounds[metric] < 1e-3 * value, metric
        assert row.numerical_rank == min(row.shape)
        assert row.normalized_effective_rank == row.effective_rank / min(row.shape)


def test_agreement_with_the_initial_weights() -> None:
    model = Net()
    before = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    before = {name: value.copy() for name, value in before.items()}
    # Vectors are as near as the bound of the values over the gaps; the default's suffices to 3e-3.
    watch = SpectralMonitor(model, every=1, tolerance=1e-5)
    first = due(watch.step(0))
    for values in first.agreement.values():
        np.testing.assert_allclose(values, 1.0, atol=1e-5)
    for seed in range(20):
        update(model, seed)
    frame = due(watch.step(20))
    name = "block.linear1.weight"
    U, _, Vh = np.linalg.svd(before[name], full_matrices=False)
    after = model.get_parameter(name).detach().double().numpy()
    U2, _, Vh2 = np.linalg.svd(after, full_matrices=False)
    expected = np.abs((U * U2).sum(0) * (Vh * Vh2).sum(1))
    assert expected.min() < 0.99  # the weights did move
    np.testing.assert_allclose(frame.agreement[name], expected, atol=1e-3)


def test_agreement_with_the_previous_step_and_with_given_svds() -> None:
    model = Net()
    previous = SpectralMonitor(model, every=1, reference="previous", pairs=None)
    first = due(previous.step())
    assert all(np.isnan(values).all() for values in first.agreement.values())
    given = {"head.weight": sk.svd(model.head.weight.detach())}
    fixed = SpectralMonitor(model, every=1, reference=given, pairs=None)
    svds = sk.svd([p.detach() for p in model.parameters() if p.dim() == 2])
    listed = SpectralMonitor(model, every=1, reference=svds, pairs=None)
    for seed in range(3):
        update(model, seed)
        frame = due(previous.step())
    assert list(due(fixed.step()).agreement) == ["head.weight"]
    np.testing.assert_allclose(
        due(fixed.step()).agreement["head.weight"], due(listed.step()).agreement["head.weight"],
        atol=1e-5,
    )  # fmt: skip
    # One step moves the weights less than three.
    assert frame.agreement["head.weight"].sum() > due(listed.step()).agreement["head.weight"].sum()


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_marks_its_own_rows_and_nothing_else(method: Any, backend: str) -> None:
    bad = Net()
    good = copy.deepcopy(bad)
    monitors = [SpectralMonitor(model, every=1, method=method) for model in (bad, good)]
    for seed in range(3):
        for model, watch in zip((bad, good), monitors, strict=True):
            update(model, seed)
            watch.step()
    name = "block.linear1.weight"
    healthy = bad.get_parameter(name)[2, 1].item()
    with torch.no_grad():
        bad.get_parameter(name)[2, 1] = math.nan
    frame, expected = (due(watch.step()) for watch in monitors)
    row = frame.matrices[name]
    assert not row.finite
    assert np.isnan(row.singular_values).all()
    assert all(math.isnan(getattr(row, metric)) for metric in METRICS)
    assert all(math.isnan(row.bounds[metric]) for metric in METRICS)
    touched = [pair for pair in frame.alignment if name in pair]
    assert len(touched) == 2
    assert all(np.isnan(frame.alignment[pair]).all() for pair in touched)
    assert np.isnan(frame.agreement[name]).all()
    assert all(other.finite for other in frame.matrices.values() if other is not row)
    assert_same(without(frame, name), without(expected, name))
    assert math.isfinite(frame.mean("effective_rank"))
    # When the layer recovers, so do its rows.
    with torch.no_grad():
        bad.get_parameter(name)[2, 1] = healthy
    for _ in range(2):
        again, expected = (due(watch.step()) for watch in monitors)
        assert again.matrices[name].finite
        # The randomized method has missed one update of this matrix's warm start: 1.2e-5 measured.
        assert_same(again, expected, tolerance=5e-5)
        assert_same(without(again, name), without(expected, name))


def without(frame: SpectralFrame, name: str) -> SpectralFrame:
    return replace(
        frame,
        matrices={key: row for key, row in frame.matrices.items() if key != name},
        alignment={pair: v for pair, v in frame.alignment.items() if name not in pair},
        agreement={key: v for key, v in frame.agreement.items() if key != name},
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_model_gains_nothing(method: Any) -> None:
    model = Net()
    update(model, 0)
    before, values = everything(model), copy.deepcopy(model.state_dict())
    watch = SpectralMonitor(model, every=1, method=method)
    for step in range(3):
        watch.step(step)
    watch.explain()
    watch.state_dict()
    watch.close()
    assert everything(model) == before
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_compiled_models_have_their_own_names() -> None:
    model = Net()
    expected = due(SpectralMonitor(model, every=1).step())
    whole = torch.compile(model, backend="eager")
    watch = SpectralMonitor(whole, every=1)
    assert_same(due(watch.step()), expected)
    before = due(watch.frame).matrices["head.weight"].spectral_norm
    update(whole, 0)
    moved = due(watch.step()).matrices["head.weight"].spectral_norm
    assert moved != before
    fresh = due(SpectralMonitor(model, every=1).step()).matrices["head.weight"].spectral_norm
    # One monitor has followed the weights there, the other has not.
    assert moved == pytest.approx(fresh, rel=1e-6)
    nested = copy.deepcopy(model)
    nested.head = torch.compile(nested.head, backend="eager")
    names = [matrix.name for matrix in SpectralMonitor(nested, every=1).matrices]
    assert "head.weight" in names
    assert not any("_orig_mod" in name for name in names)
    assert ("block.linear2.weight", "head.weight") in due(
        SpectralMonitor(nested, every=1).step()
    ).alignment


def test_live_parameters_are_read() -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1, pairs=None, reference=None)

    def norm() -> float:
        return due(watch.step()).matrices["head.weight"].frobenius_norm

    one = torch.zeros_like(model.head.weight)
    one[0, 0] = 1.0
    model.head.weight.data = 2 * one
    assert norm() == pytest.approx(2)
    model.head.weight = nn.Parameter(3 * one)
    assert norm() == pytest.approx(3)
    model.load_state_dict({**model.state_dict(), "head.weight": 4 * one})
    assert norm() == pytest.approx(4)
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert norm() == pytest.approx(8)
    model.bfloat16()
    assert norm() == pytest.approx(8)
    model.double()
    assert norm() == pytest.approx(8)
    model.head.weight.data = torch.zeros(3, 3)
    with pytest.warns(UserWarning, match=r"head.weight: its shape was \(7, 12\).*\(3, 3\) now"):
        assert math.isnan(norm())


def test_a_removed_parameter_is_a_row_that_says_so() -> None:
    weights = {"a": torch.randn(3, 3)}
    watch = SpectralMonitor(weights, every=1)
    weights["a"] = torch.eye(3)
    assert due(watch.step()).matrices["a"].stable_rank == pytest.approx(3)
    del weights["a"]
    with pytest.warns(UserWarning, match="a: the parameter is gone"):
        row = due(watch.step()).matrices["a"]
    assert (row.finite, row.reason[:21]) == (False, "the parameter is gone")


def test_dtypes_may_be_mixed() -> None:
    model = Net()
    model.head.double()
    model.embed.half()
    watch = SpectralMonitor(model, every=1)
    frame = due(watch.step())
    assert frame.matrices["head.weight"].singular_values.dtype == np.float64
    assert frame.matrices["embed.weight"].singular_values.dtype == np.float32
    U = np.linalg.svd(model.block.linear2.weight.detach().double().numpy(), False)[0]
    Vh = np.linalg.svd(model.head.weight.detach().numpy(), False)[2]
    np.testing.assert_allclose(
        frame.alignment["block.linear2.weight", "head.weight"],
        np.abs(np.diagonal(U.T @ Vh.T)), atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_autocast_grad_and_inference_modes_change_nothing(method: Any, backend: str) -> None:
    model = Net()
    make = lambda: SpectralMonitor(model, every=1, method=method, reference="previous")  # noqa: E731
    plain, cast, inference = make(), make(), make()
    for _ in range(2):
        expected = due(plain.step())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(due(cast.step()), expected)
        with torch.inference_mode():
            assert_same(due(inference.step()), expected)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("reference", ["init", "previous"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_monitor_goes_on_the_same(method: Any, reference: Any) -> None:
    options: dict[str, Any] = {"method": method, "reference": reference, "k": 5, "seed": 3}
    model = Net()
    watch = SpectralMonitor(model, **{"every": 1, **options})
    for seed in range(4):
        update(model, seed)
        watch.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "monitor": watch.state_dict()}, file)
    frames = []
    for seed in range(4, 7):
        update(model, seed)
        frames.append(due(watch.step()))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = Net()
    resumed = SpectralMonitor(
        other, **{"every": 1, **options}
    )  # its own "init" is that of other weights
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["monitor"])
    for seed, expected in zip(range(4, 7), frames, strict=True):
        update(other, seed)
        frame = due(resumed.step())
        assert frame.step == expected.step
        assert_same(frame, expected)


def test_states_that_do_not_fit() -> None:
    state = SpectralMonitor(Net(), every=1).state_dict()
    with pytest.raises(ValueError, match=r"embed.weight: \(7, 12\) in the state, \(7, 8\) here"):
        SpectralMonitor(Net(8), every=1).load_state_dict(state)
    with pytest.raises(ValueError, match="method 'tracked', this monitor has 'randomized'"):
        SpectralMonitor(Net(), every=1, method="randomized").load_state_dict(state)
    with pytest.raises(ValueError, match="reference is 'init', this monitor's is 'previous'"):
        SpectralMonitor(Net(), every=1, reference="previous").load_state_dict(state)
    with pytest.raises(ValueError, match="version"):
        SpectralMonitor(Net(), every=1).load_state_dict({})
    small = SpectralMonitor(Net(), every=1, method="randomized", k=2)
    small.step()
    with pytest.raises(ValueError, match=r"warm start of 'embed.weight' is \(12, 2\)"):
        SpectralMonitor(Net(), every=1, method="randomized", k=3).load_state_dict(
            small.state_dict()
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reference", ["init", "previous"])
def test_the_monitor_holds_few_times_the_weights(method: Any, reference: Any) -> None:
    class Demo(nn.Module):
        """Shapes of the modular addition demo."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(60, 128)
            self.attn = nn.MultiheadAttention(128, 4)
            self.up, self.down = nn.Linear(128, 512), nn.Linear(512, 128)
            self.head = nn.Linear(128, 60)

    model = Demo()
    watch = SpectralMonitor(model, every=1, method=method, reference=reference)
    for _ in range(3):
        watch.step()
    gc.collect()
    weights = sum(matrix.read().nbytes for matrix in watch.matrices)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = held_bytes(vars(watch), own)
    assert held > 0.1 * weights  # the references are there, so the walk does see tensors
    # The tracker has its vectors and, so that a step allocates nothing, the last results too, of
    # the heads of the attention as well.
    assert held <= (4 if method == "tracked" else 2) * weights


def test_the_frame_as_dict_and_as_table() -> None:
    pandas = pytest.importorskip("pandas")
    watch = SpectralMonitor(Net(), every=1)
    frame = due(watch.step(3, loss=0.5))
    content = frame.to_dict()
    assert content["matrices"]["head.weight"]["shape"] == [7, 12]
    assert len(content["alignment"]["block.linear1.weight -> block.linear2.weight"]) == 12
    table = frame.to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == ["step", "matrix", "metric", "value", "bound", "reason"]
    row = table[(table.matrix == "head.weight") & (table.metric == "effective_rank")].iloc[0]
    assert row.value == frame.matrices["head.weight"].effective_rank
    assert 0 < row.bound < 1e-3
    assert (table[table.metric == "loss"].value == 0.5).all()
    assert len(table[table.metric.str.startswith("singular_value[")]) == 6 * 12 - 5 - 5


def test_only_values_are_computed_where_nothing_asks_for_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Net()
    expected = due(SpectralMonitor(model, every=1).step())
    mixed = SpectralMonitor(model, every=1, reference=None, pairs=[("block.linear1.weight",
                                                           "block.linear2.weight")])  # fmt: skip
    frame = due(mixed.step())
    for name, row in frame.matrices.items():
        np.testing.assert_allclose(
            row.singular_values, expected.matrices[name].singular_values, atol=1e-5
        )

    def refuse(matrices: list[Tensor]) -> None:
        raise AssertionError(f"vectors of {len(matrices)} matrices")

    values = SpectralMonitor(model, every=1, reference=None, pairs=None)
    monkeypatch.setattr("spectral_monitor.step.solvers.svd_list", lambda m: refuse(m) if m else [])
    assert due(values.step()).matrices.keys() == expected.matrices.keys()


def test_k_limits_alignment_and_agreement() -> None:
    frame = due(SpectralMonitor(Net(), every=1, method="exact", k=3).step())
    assert {len(values) for values in frame.alignment.values()} == {3}
    assert {len(values) for values in frame.agreement.values()} == {3}
    assert len(frame.matrices["head.weight"].singular_values) == 7
    few = due(SpectralMonitor(Net(), every=1, method="randomized", k=3).step())
    assert {len(row.singular_values) for row in few.matrices.values()} == {3}
