"""Vectors of matrices that lose rank, in updates that wait for nothing: orthonormal, too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.tracking.whole import triton_settling_kernels as kernels
from spectral_kernels.tracking.whole.triton_launches import PASS, STRIPES, launch
from tests.support.collapses import PATTERNS, Collapse, departure

# What `SpectrumTracker.update` states of its vectors.
DEPARTURE = 0.03


@pytest.mark.parametrize(
    ("shape", "dtype"), [((40, 28), torch.float32), ((28, 40), torch.float64)], ids=str
)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_vectors_stay_orthonormal(pattern: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    tracker = sk.SpectrumTracker()
    for matrix in Collapse(*shape)(pattern):
        A = torch.from_numpy(matrix).to(dtype)
        found = tracker.update(A)
        long, short = (found.U, found.Vh.mT) if shape[0] >= shape[1] else (found.Vh.mT, found.U)
        assert departure(long) < DEPARTURE
        # One Newton-Schulz step after the largest rotation is what lost matrices have.
        assert departure(short) < DEPARTURE
        assert tracker.bounds is not None
        rest = torch.linalg.matrix_norm((found.U.double() * found.S) @ found.Vh.double() - A, 2)
        assert rest <= 4.0 * tracker.bounds.max() + 1e-6 * found.S[0]


def settled(Q: torch.Tensor, doubt: list[int]) -> torch.Tensor:
    """Return rows (B, r, M) as the kernel leaves them."""
    count, r, M = Q.shape
    found = Q.clone()
    work = torch.full((count, M), float("nan"), dtype=torch.float64)
    launch(
        kernels.settle, count, PASS, doubt_ptr=torch.tensor(doubt, dtype=torch.int32),
        q_ptr=found, x_ptr=work, products_ptr=torch.full((count, r), float("nan")).double(),
        r=r, long=M,
    )  # fmt: skip
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("M", "r"), [(300, 20), (35, 35), (5, 4)])
def test_rows_are_settled_in_order(M: int, r: int, dtype: torch.dtype) -> None:
    """As by Gram-Schmidt; those without a direction of their own get one that is left."""
    whole = torch.linalg.qr(torch.randn(M, r).double()).Q.mT
    mixed = whole.clone()
    # A cosine of 0.6, a row of nothing and one in the span of others; the last is its own.
    mixed[1] = 0.6 * whole[0] + 0.8 * whole[1]
    mixed[2] = 0.0
    mixed[3:-1] = whole[0]
    Q = torch.stack([mixed, mixed]).to(dtype)
    found = settled(Q, [1, r])
    assert torch.equal(found[1], Q[1])
    assert departure(found[0].mT) < 1e-5
    assert torch.equal(found[0, 0], Q[0, 0])
    own = [1] if r == 4 else [1, r - 1]
    torch.testing.assert_close(found[0, own].double(), whole[own], rtol=0, atol=2e-6)


def test_a_single_entry() -> None:
    assert settled(torch.zeros(1, 1, 1), [0]).abs().item() == 1.0


@pytest.mark.parametrize("r", [1, 30, 70])
def test_the_first_row_in_doubt(r: int) -> None:
    generator = np.random.default_rng(r)
    K = generator.standard_normal((5, r, r)) * 0.02 / r
    K[0] *= 0.1
    K[3, r - 1, 0] = 0.03
    K[1, r // 2, 0] = 0.03
    K[2, r - 1, 0] = np.nan
    doubtful = torch.tensor([1, 1, 1, 1, 0], dtype=torch.int32)
    incomplete, doubt = torch.ones(5, dtype=torch.int32), torch.full((5,), -1, dtype=torch.int32)
    factors = torch.ones(5, r, dtype=torch.float64)
    factors[3, r // 3 :] = 0.0
    launch(
        kernels.first_doubt, 5, STRIPES, doubtful_ptr=doubtful, incomplete_ptr=incomplete,
        factors_ptr=factors, gram_ptr=torch.from_numpy(K), doubt_ptr=doubt, r=r,
    )  # fmt: skip
    so_far = np.cumsum(2.0 * (np.tril(K, -1) ** 2).sum(axis=-1), axis=-1)
    expected = [int((row <= 0.02**2).sum()) for row in so_far]
    # From the first row that W does not give.
    if expected[3] < r:
        expected[3] = min(expected[3], r // 3)
    assert doubt.tolist() == [*expected[:4], r]
    assert incomplete.tolist() == [int(first == r) for first in doubt.tolist()]
    assert r == 1 or (expected[0] == r and expected[1] == r // 2 and expected[2] <= r - 1)
