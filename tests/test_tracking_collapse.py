"""Vectors of a tracker whose matrices lose rank: orthonormal at every update, on both sides."""

from __future__ import annotations

from collections.abc import Iterator

import matrices
import numpy as np
import pytest
import torch

import spectral_kernels as sk

# What `SpectrumTracker.update` states of its vectors.
DEPARTURE = 0.03


def departure(vectors: torch.Tensor) -> float:
    """Return ||Q^T Q - I||_2 of columns (m, k)."""
    Q = vectors.double()
    eye = torch.eye(Q.shape[-1], dtype=torch.float64)
    return float(torch.linalg.matrix_norm(Q.mT @ Q - eye, 2))


class Collapse:
    """A matrix of full rank, then of rank 4: still, shrinking, moving within its range, and out."""

    def __init__(self, m: int, n: int) -> None:
        r = min(m, n)
        self.U, self.V = matrices.orthonormal(m, r), matrices.orthonormal(n, r, 1)
        self.sigma = np.linspace(1.0, 0.5, r)
        self.rng = np.random.default_rng(2)

    def low(self, rest: float = 0.0) -> np.ndarray:
        sigma = np.where(np.arange(len(self.sigma)) < 4, self.sigma, rest * self.sigma)
        return (self.U * sigma) @ self.V.T

    def still(self) -> Iterator[np.ndarray]:
        yield from [self.low()] * 4

    def shrinking(self) -> Iterator[np.ndarray]:
        for i in range(6):
            yield 0.99**i * self.low()

    def within(self) -> Iterator[np.ndarray]:
        for _ in range(6):
            core = np.diag(self.sigma[:4]) + 1e-4 * self.rng.standard_normal((4, 4))
            yield self.U[:, :4] @ core @ self.V[:, :4].T

    def turning(self) -> Iterator[np.ndarray]:
        for _ in range(6):
            self.V += 1e-6 * self.rng.standard_normal(self.V.shape)
            yield self.low()

    def decaying(self) -> Iterator[np.ndarray]:
        for i in range(12):
            self.U += 1e-4 * self.rng.standard_normal(self.U.shape)
            yield self.low(0.3**i)

    def noisy(self) -> Iterator[np.ndarray]:
        for size in (1e-3, 1e-6, 1e-8, 1e-12, 1e-14):
            yield self.low() + size * self.rng.standard_normal((len(self.U), len(self.V)))

    def there_and_back(self) -> Iterator[np.ndarray]:
        for rest in (0.0, 1.0, 1e-9, 0.5, 0.0):
            yield self.low(rest)

    def __call__(self, pattern: str) -> Iterator[np.ndarray]:
        yield from [self.low(1.0)] * 2
        yield from getattr(self, pattern)()


PATTERNS = ["still", "shrinking", "within", "turning", "decaying", "noisy", "there_and_back"]
SHAPES = [(128, 96), (96, 128), (200, 200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_vectors_stay_orthonormal(
    pattern: str, shape: tuple[int, int], dtype: torch.dtype, backend: str
) -> None:
    tracker = sk.SpectrumTracker()
    for matrix in Collapse(*shape)(pattern):
        A = torch.from_numpy(matrix).to(dtype)
        found = tracker.update(A)
        assert departure(found.U) < DEPARTURE
        assert departure(found.Vh.mT) < DEPARTURE
        assert tracker.bounds is not None
        # What a vector of a tiny value becomes costs no more than the values' own errors.
        rest = torch.linalg.matrix_norm((found.U.double() * found.S) @ found.Vh.double() - A, 2)
        assert rest <= 4.0 * tracker.bounds.max() + 1e-6 * found.S[0]


def test_float32_columns_of_rounding(backend: str) -> None:
    # At a side of 300 the columns of zero values are rounding above what counts as noise.
    tracker = sk.SpectrumTracker()
    for matrix in Collapse(300, 300)("within"):
        assert departure(tracker.update(torch.from_numpy(matrix).float()).U) < DEPARTURE


def test_every_instruction_set(every_isa: str) -> None:
    tracker = sk.SpectrumTracker()
    for matrix in Collapse(128, 96)("within"):
        found = tracker.update(torch.from_numpy(matrix))
        assert departure(found.U) < DEPARTURE


@pytest.mark.parametrize("pattern", PATTERNS)
def test_leading_vectors_stay_orthonormal(pattern: str, backend: str) -> None:
    tracker = sk.SpectrumTracker(12)
    for matrix in Collapse(128, 96)(pattern):
        found = tracker.update(torch.from_numpy(matrix).float())
        assert departure(found.U) < 1e-5
        assert departure(found.Vh.mT) < 1e-5


def test_vectors_of_decomposed_matrices_stay_orthonormal(backend: str) -> None:
    tracker = sk.SpectrumTracker()
    U, V = torch.randn(100, 40), torch.randn(40, 90)
    sigma = torch.diag(torch.linspace(1.0, 0.5, 40))
    for rest in (1.0, 1.0, 0.0, 0.0, 1e-8, 1e-5, 0.0):
        core = torch.where(torch.arange(40) < 4, sigma, rest * sigma)
        found = tracker.update(sk.Decomposed(U, core, V))
        assert departure(found.U) < DEPARTURE
        assert departure(found.Vh.mT) < DEPARTURE
