"""The bound of an entropy by the total variation distance, as numbers and as tensors have it."""

from __future__ import annotations

import math

import numpy as np
import torch

from spectral_kernels.rank.entropy_change import entropy_change, entropy_changes


def test_it_covers_random_perturbations() -> None:
    generator = np.random.default_rng(0)
    for _ in range(500):
        r = int(generator.integers(2, 30))
        p, q = generator.dirichlet(np.full(r, 0.3)) + 1e-300, generator.dirichlet(np.ones(r))
        q = (1 - 10.0 ** -generator.integers(0, 6)) * (p - q) + q
        distance = 0.5 * np.abs(p - q).sum()
        change = abs((p * np.log(p)).sum() - (q * np.log(q)).sum())
        assert change <= entropy_change(distance, r) + 1e-12


def test_numbers_and_tensors_are_the_same() -> None:
    distances = [0.0, 1e-12, 0.1, 0.5, 0.9, 1.0, 3.0]
    for r in (1, 2, 30):
        got = entropy_changes(torch.tensor(distances, dtype=torch.float64), r)
        want = [entropy_change(distance, r) for distance in distances]
        # Sums of the same terms, in different orders.
        np.testing.assert_allclose(got, want, rtol=1e-15, atol=1e-16)
    assert entropy_change(1.0, 30) == math.log(30)
    assert math.isnan(entropy_change(math.nan, 3))
    assert entropy_changes(torch.tensor([math.nan]), 3).isnan().all()
