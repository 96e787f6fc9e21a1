"""Method "randomized": bounds of leading values, and of all that is told from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.bounds import estimate_from_leading

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS
from tests.support.monitored import Net, assert_same, due, truth


@pytest.mark.parametrize("kind", ["flat", "decaying", "low rank"])
def test_randomized_bounds_hold(kind: str, backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(60, 40, generator=generator)
    if kind != "flat":
        U, S, Vh = torch.linalg.svd(A, full_matrices=False)
        S = 0.6 ** torch.arange(40.0) if kind == "decaying" else torch.arange(40.0).lt(6) * 1.0
        A = (U * S) @ Vh
    weights = {"A": A}
    watch = SpectralMonitor(weights, every=1, method="randomized", k=12)
    for _ in range(4):  # warm starts after the first
        weights["A"] = weights["A"] + 0.001 * A.norm() / 40 * torch.randn(
            60, 40, generator=generator
        )
        row = due(watch.step()).matrices["A"]
        expected, bounds = truth(weights["A"]), row.bounds
        leading = expected.pop("singular_values")[:12]
        assert np.abs(row.singular_values - leading).max() <= bounds["singular_values"]
        for metric, value in expected.items():
            assert abs(getattr(row, metric) - value) <= bounds[metric], metric
        assert row.numerical_rank <= 40 <= row.numerical_rank + bounds["numerical_rank"]
    if kind == "decaying":
        # Not vacuous where the leading values hold nearly all there is.
        assert bounds["spectral_norm"] < 1e-2 * row.spectral_norm
        assert bounds["effective_rank"] < 0.5


def test_randomized_with_all_values_agrees_with_exact() -> None:
    model = Net()
    exact = due(SpectralMonitor(model, every=1).step())
    watch = SpectralMonitor(model, every=1, method="randomized", k=64)
    assert_same(due(watch.step()), exact, tolerance=2e-2)
    row = due(watch.frame).matrices["head.weight"]
    assert row.bounds["effective_rank"] < 1e-2


def test_randomized_zero_matrix_and_extreme_scales() -> None:
    A = torch.randn(20, 12)
    weights = {"zero": torch.zeros(20, 12), "tiny": 1e-30 * A, "huge": 1e30 * A, "one": A}
    frame = due(SpectralMonitor(weights, every=1, method="randomized", k=4).step())
    zero = frame.matrices["zero"]
    assert zero.finite
    assert all(getattr(zero, metric) == 0 for metric in METRICS)
    for name in ("tiny", "huge"):
        row = frame.matrices[name]
        np.testing.assert_allclose(row.stable_rank, frame.matrices["one"].stable_rank, rtol=0.1)
        assert math.isfinite(row.bounds["effective_rank"])


def test_randomized_is_reproducible_by_its_seed() -> None:
    model = Net()
    frames = [
        due(SpectralMonitor(model, every=1, method="randomized", k=3, seed=seed).step())
        for seed in (1, 1, 2)
    ]
    assert_same(frames[0], frames[1])
    assert any(
        (frames[0].matrices[name].singular_values != row.singular_values).any()
        for name, row in frames[2].matrices.items()
    )


def test_leading_values_of_every_spectrum_with_the_same_data_are_covered() -> None:
    """Random spectra above the computed values: what was not computed may be anything."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        r, k = 10, int(generator.integers(1, 10))
        sigma = np.sort(generator.exponential(size=r) ** generator.integers(1, 4))[::-1]
        # Computed values of a projection: below the true ones.
        s = np.sort(sigma[:k] * (1 - 0.1 * generator.random(k)))[::-1]
        norm = float(np.sqrt((sigma**2).sum()))
        low, high = sk.bounds_from_leading_values(torch.from_numpy(s.copy()), norm, r)
        estimate = estimate_from_leading(s, norm, (r, r), (float(low), float(high)))
        p = sigma / sigma.sum()
        values = dict(zip(METRICS, estimate.values, strict=True))
        bounds = dict(zip(METRICS, estimate.bounds, strict=True))
        for metric, value in (
            ("effective_rank", float(-(p * np.log(p)).sum())),
            ("nuclear_norm", float(sigma.sum())),
            ("spectral_norm", float(sigma[0])),
            ("stable_rank", norm**2 / sigma[0] ** 2),
        ):
            assert abs(values[metric] - value) <= bounds[metric] * (1 + 1e-9), metric


@pytest.mark.parametrize("k", [3, 10])
def test_mass_that_only_rounding_leaves_free_need_not_be_there(k: int) -> None:
    """All there is lies in the leading values, which are rounded to float32."""
    sigma = np.linspace(2.0, 1.0, k)
    s = (sigma * (1 + 3e-7)).astype(np.float32)
    norm = float(np.linalg.norm(sigma))
    low, high = sk.bounds_from_leading_values(torch.from_numpy(s), norm, k)
    estimate = estimate_from_leading(s, norm, (k, k), (float(low), float(high)))
    nuclear = METRICS.index("nuclear_norm")
    assert abs(estimate.values[nuclear] - sigma.sum()) <= estimate.bounds[nuclear]
