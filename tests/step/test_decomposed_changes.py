"""Decomposed layers whose factors change: NaN, new factors, new layers, updates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.monitor import SpectralMonitor
from torch import nn

import spectral_kernels as sk
from spectral_kernels.entry.results import Decomposed
from tests.support.decomposed_models import (
    LAYERS,
    assert_within_bounds,
    decomposed,
    layer,
    product,
    weight_of,
)
from tests.support.monitored import METHODS, Net, due, update


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
    assert not any(
        m.name.endswith("[gradient]") for m in watch._measurement.comparisons.changes.matrices
    )
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
