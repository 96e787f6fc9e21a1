"""Matrices that lose rank, as trajectories, and how far vectors are from orthonormal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tests.support import matrices


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
