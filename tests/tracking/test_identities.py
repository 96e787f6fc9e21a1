"""Which vector is where: numbers that stay with vectors while their values move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from tests.support import matrices


def identities(tracker: sk.SpectrumTracker) -> list[int]:
    found: Any = tracker.identities
    return [int(i) for i in found]


def crossing(t: float, rows: int = 40, r: int = 12) -> torch.Tensor:
    """The fourth and the fifth of values 6 to 1 change places at t = 0.5; vectors stand still."""
    U, V = matrices.orthonormal(rows, r), matrices.orthonormal(r, r, 1)
    sigma = np.linspace(6.0, 1.0, r)
    sigma[3:5] = 4.0 + t, 5.0 - t
    return torch.from_numpy((U * sigma) @ V.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_a_crossing(dtype: torch.dtype, every_isa: str) -> None:
    """Values are ordered, and the numbers tell that two vectors have passed each other."""
    tracker = sk.SpectrumTracker()
    seen = []
    for t in np.linspace(0.0, 1.0, 24):
        result: Any = tracker.update(crossing(float(t)).to(dtype))
        seen.append(identities(tracker))
        assert bool((result.S.diff() <= 0).all())
    order = list(range(12))
    # At t = 0 the value of the fifth column of U is the larger one.
    assert seen[0] == order
    passed = [*order[:3], 4, 3, *order[5:]]
    assert seen[-1] == passed
    assert all(numbers in (order, passed) for numbers in seen)
    assert tracker.resolves == 0


def test_numbers_follow_vectors_while_training_noise_turns_them(every_isa: str) -> None:
    """Every vector is near the one that had its number a step before."""
    A = matrices.with_spectrum(30, 20, np.linspace(20.0, 1.0, 20))
    tracker = sk.SpectrumTracker(tolerance=1e-4)
    before: Any = tracker.update(torch.from_numpy(A).float())
    old = identities(tracker)
    for i in range(60):
        A = A + 0.05 * matrices.gaussian(30, 20, i + 5)
        now: Any = tracker.update(torch.from_numpy(A).float())
        new = identities(tracker)
        assert sorted(set(new)) == sorted(new)
        for place, number in enumerate(new):
            if number in old:
                cosine = before.Vh[old.index(number)] @ now.Vh[place]
                assert cosine > 0.5**0.5 - 1e-3
        before, old = now, new
    assert tracker.resolves == 0


def test_a_new_solution_keeps_the_numbers_of_what_it_finds_again(every_isa: str) -> None:
    sigma = np.array([8.0, 6.0, 4.0, 2.0])
    A = torch.from_numpy(matrices.with_spectrum(20, 4, sigma))
    tracker = sk.SpectrumTracker(tolerance=1e-12)
    tracker.update(A)
    U, _, Vh = sk.svd(A)
    # The last two turned by 45 degrees and a bit, the first two as they were but in other places.
    c, s = np.cos(0.9), np.sin(0.9)
    turned = torch.tensor([[c, s], [-s, c]]) @ Vh[2:]
    B = U @ torch.diag(torch.tensor([5.0, 7.0, 4.0, 2.0], dtype=torch.float64))
    tracker.update(B @ torch.cat([Vh[:2], turned]))
    first, second, *rest = identities(tracker)
    assert (first, second) == (1, 0)
    # The third resembles the old fourth now, and the other way round.
    assert rest == [3, 2]
    # A stranger to all old ones is a new vector.
    mixed = torch.from_numpy(np.ones((4, 4)) / 2 - np.eye(4)) @ Vh
    tracker.update(U @ torch.diag(torch.tensor(sigma)) @ mixed)
    assert tracker.work == ["solved"]
    assert all(number >= 4 for number in identities(tracker))


def test_what_is_not_finite_has_no_identity(every_isa: str) -> None:
    tracker = sk.SpectrumTracker()
    A = torch.randn(5, 3)
    tracker.update(A)
    tracker.update(A * float("nan"))
    assert identities(tracker) == [-1, -1, -1]
    tracker.update(A)
    assert identities(tracker) == [0, 1, 2]
    state = tracker.state_dict()
    other = sk.SpectrumTracker()
    other.load_state_dict(state)
    other.update(A.flip(0))
    assert identities(other) == [0, 1, 2]
