"""What is stated of values computed from scratch, against truth that is known: no LAPACK between.

float64 has no wider type to be held against, and LAPACK's own errors are what is in question, so
the matrices are those whose values have a formula, or are small enough for mpmath.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.runtime.numerics import value_rounding

Known = tuple[np.ndarray, Any]


def constant(m: int, n: int, value: float = 1.0) -> Known:
    true = np.zeros(min(m, n), dtype=np.longdouble)
    true[0] = np.sqrt(np.longdouble(m * n)) * value
    return np.full((m, n), value), true


def ones_plus_identity(n: int) -> Known:
    true = np.ones(n, dtype=np.longdouble)
    true[0] = n + 1
    return np.ones((n, n)) + np.eye(n), true


def rank_one(m: int, n: int) -> Known:
    u, v = np.arange(1, m + 1) % 17 + 1, np.arange(1, n + 1) % 13 + 1
    true = np.zeros(min(m, n), dtype=np.longdouble)
    true[0] = np.sqrt(np.longdouble((u * u).sum() * (v * v).sum()))
    return np.outer(u, v).astype(np.float64), true


def hadamard(n: int) -> Known:
    H = np.ones((1, 1))
    while len(H) < n:
        H = np.block([[H, H], [H, -H]])
    return H, np.full(n, np.sqrt(np.longdouble(n)))


def second_difference(n: int) -> Known:
    A = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    angle = np.arange(n, 0, -1) * (np.arccos(np.longdouble(-1)) / (n + 1))
    return A, 2 - 2 * np.cos(angle)


def graded_diagonal(m: int, n: int) -> Known:
    """Powers of two on the diagonal, rows and columns permuted: exact."""
    r = min(m, n)
    sigma = np.ldexp(1.0, -np.arange(r) % 60)
    A = np.zeros((m, n))
    A[np.arange(r) * 7919 % m if m % 7919 else np.arange(r), np.arange(r)] = sigma
    return A, np.sort(sigma.astype(np.longdouble))[::-1]


def exactly(A: np.ndarray) -> Known:
    with mpmath.workdps(60):
        M = mpmath.matrix(A.tolist())
        gram = M.T * M if A.shape[0] >= A.shape[1] else M * M.T
        squares = mpmath.eigsy(gram, eigvals_only=True)
        return A, np.sort([float(mpmath.sqrt(max(x, 0))) for x in squares])[::-1]


def kahan(n: int) -> np.ndarray:
    s, c = np.sin(1.2), np.cos(1.2)
    return np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))


def hilbert(n: int) -> np.ndarray:
    return 1.0 / (np.arange(n)[:, None] + np.arange(n) + 1.0)


CASES: dict[str, Callable[[], Known]] = {
    **{f"ones {m} x {n}": (lambda m=m, n=n: constant(m, n)) for m, n in (
        (2, 2), (5, 3), (30, 20), (100, 100), (500, 400), (600, 600), (400, 3000), (24, 2000),
        (64, 20000), (384, 384), (385, 385),
    )},
    "tenths 500 x 2000": lambda: constant(500, 2000, 0.1),
    "tenths 20 x 5000": lambda: constant(20, 5000, 0.1),
    **{f"J + I {n}": (lambda n=n: ones_plus_identity(n)) for n in (2, 10, 50, 200, 400, 600)},
    **{f"rank one {n}": (lambda n=n: rank_one(n, n + 30)) for n in (20, 100, 400)},
    **{f"Hadamard {n}": (lambda n=n: hadamard(n)) for n in (32, 256, 512)},
    **{f"second difference {n}": (lambda n=n: second_difference(n)) for n in (31, 100, 400)},
    "graded 420 x 400": lambda: graded_diagonal(420, 400),
    "Hilbert": lambda: exactly(hilbert(24)),
    "Kahan": lambda: exactly(kahan(24)),
    "clustered": lambda: exactly(np.linalg.qr(np.vander(np.linspace(0, 1, 20)))[0] + 1e-9),
}  # fmt: skip


def error(found: torch.Tensor, true: Any) -> float:
    """Return the largest error relative to sigma_1."""
    return float(np.abs(found.double().numpy() - true).max() / true[0])


@pytest.mark.parametrize("name", CASES)
def test_values_are_within_what_is_stated(name: str, backend: str) -> None:
    matrix, true = CASES[name]()
    A = torch.from_numpy(matrix)
    stated = value_rounding(*A.shape, A.dtype)
    assert error(sk.svdvals(A), true) <= stated
    assert error(sk.svd(A).S, true) <= stated
    assert error(sk.spectral_summary(A).singular_values, true) <= stated
    # Representable in float32, so that the truth is the same.
    if torch.equal(A.float().double(), A):
        stated = value_rounding(*A.shape, torch.float32)
        assert error(sk.svdvals(A.float()), true) <= stated
        assert error(sk.svd(A.float()).S, true) <= stated


@pytest.mark.parametrize("name", CASES)
def test_tracked_values_are_within_their_bounds(name: str, backend: str) -> None:
    matrix, true = CASES[name]()
    if min(matrix.shape) > 200 or max(matrix.shape) > 6000:
        pytest.skip("takes seconds on plain torch; smaller ones tell as much")
    tracker = sk.SpectrumTracker()
    for _ in range(2):
        found = tracker.update(matrix)
        assert (np.abs(found.S - true) <= tracker.bounds).all()
        errors = np.linalg.norm((found.S - true).astype(np.float64))
        assert errors <= tracker.error_norms


@pytest.mark.parametrize("method", ["exact", "tracked"])
@pytest.mark.parametrize("name", ["ones 500 x 400", "J + I 400", "ones 100 x 100"])
def test_rows_have_bounds_that_hold(name: str, method: str, backend: str) -> None:
    matrix, true = CASES[name]()
    m, n = matrix.shape
    model = torch.nn.Linear(n, m, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.from_numpy(matrix))
    frame = sk.SpectralMonitor(model, method=method, every=1).step()
    assert frame is not None
    row = frame.matrices["weight"]
    assert (np.abs(row.singular_values - true) <= row.singular_value_bounds).all()
    p = true[true > 0] / true.sum()
    entropy = float(-(p * np.log(p)).sum())
    assert abs(row.effective_rank - entropy) <= row.bounds["effective_rank"]
    stable = float((true**2).sum() / true[0] ** 2)
    assert abs(row.stable_rank - stable) <= row.bounds["stable_rank"]
    assert abs(row.nuclear_norm - float(true.sum())) <= row.bounds["nuclear_norm"]


def test_eight_eps_would_not_be_a_bound() -> None:
    matrix, true = CASES["ones 500 x 400"]()
    found = torch.linalg.svdvals(torch.from_numpy(matrix))
    assert 8 * 2.0**-52 < error(found, true) < value_rounding(500, 400, torch.float64)
