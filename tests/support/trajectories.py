"""Sequences of matrices that a tracker meets: drift, crossings, collapse, jumps, training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

import spectral_kernels as sk
from tests.support import matrices

Trajectory = Callable[[], Iterator[torch.Tensor]]


def brownian(m: int, n: int, speed: float, steps: int = 25) -> Trajectory:
    """Gaussian steps of ``speed`` relative to the matrix, as noisy training makes them."""

    def walk() -> Iterator[torch.Tensor]:
        A = torch.from_numpy(matrices.gaussian(m, n))
        for i in range(steps):
            yield A
            A = A + speed * torch.from_numpy(matrices.gaussian(m, n, seed=i + 1))

    return walk


def crossing() -> Iterator[torch.Tensor]:
    """Two values pass each other while the vectors turn slowly."""
    U, V = matrices.orthonormal(40, 12), matrices.orthonormal(12, 12, 1)
    turn = 1e-3 * np.triu(matrices.gaussian(12, 12, 2), 1)
    step = np.linalg.qr(np.eye(12) + turn - turn.T).Q
    for t in np.linspace(0.0, 1.0, 40):
        sigma = np.linspace(6.0, 1.0, 12)
        sigma[3:5] = 4.0 + t, 5.0 - t
        yield torch.from_numpy((U * sigma) @ V.T)
        V = V @ step


def splitting() -> Iterator[torch.Tensor]:
    """A cluster of equal values spreads in a direction unknown before."""
    A, B = matrices.with_spectrum(30, 20, np.repeat([2.0, 1.0], 10)), matrices.gaussian(30, 20)
    for t in (0.0, 0.0, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.1, 0.2):
        yield torch.from_numpy(A + t * B)


def jumps() -> Iterator[torch.Tensor]:
    """Weights replaced, twice."""
    yield from brownian(24, 33, 1e-4, steps=3)()
    for seed in (50, 50, 90, 90):
        yield torch.from_numpy(matrices.gaussian(24, 33, seed))


def collapse() -> Iterator[torch.Tensor]:
    """To rank 2, to zero, and back."""
    A = matrices.gaussian(26, 20)
    low = matrices.with_spectrum(26, 20, np.array([5.0, 2.0]))
    for keep in (1.0, 1e-2, 1e-5, 1e-9, 0.0):
        yield torch.from_numpy(low + keep * A)
    for factor in (0.0, 0.0, 1.0):
        yield torch.from_numpy(factor * low)
    yield torch.from_numpy(low + 1e-6 * A)
    yield torch.from_numpy(A)


def blinking() -> Iterator[torch.Tensor]:
    for i, A in enumerate(brownian(16, 21, 1e-3, steps=12)()):
        bad = A.clone()
        bad[3, 4] = float("nan") if i % 2 else float("inf")
        yield bad if i in (0, 4, 5, 9) else A


def scaled(by: float) -> Trajectory:
    return lambda: (by * A for A in brownian(20, 14, 1e-3, steps=8)())


def rank_deficient() -> Iterator[torch.Tensor]:
    """Rank 4 of 18, the range drifting: the same columns are zero at no step."""
    for A in brownian(4, 18, 2e-3, steps=15)():
        yield torch.from_numpy(matrices.gaussian(30, 4)) @ A


def graded() -> Iterator[torch.Tensor]:
    A, B = matrices.graded(30, 25), matrices.gaussian(30, 25)
    for i in range(10):
        yield torch.from_numpy(A + 1e-5 * i * B)


def training() -> Iterator[torch.Tensor]:
    """The hidden layer of a small network over 200 steps of Adam."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 10, generator=generator)
    y = (x[:, :1] * x[:, 1:2]).tanh()
    sizes = ((24, 10), (32, 24), (1, 32))
    weights = [(torch.randn(s, generator=generator) / s[1] ** 0.5).requires_grad_() for s in sizes]
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        h = (x @ weights[0].T).relu()
        loss = ((h @ weights[1].T).relu() @ weights[2].T - y).square().mean()
        loss.backward()
        optimizer.step()
        yield weights[1].detach().clone()


TRAJECTORIES: dict[str, Trajectory] = {
    "still": brownian(33, 20, 0.0, steps=5),
    "slow": brownian(40, 40, 1e-6),
    "wide, slow": brownian(30, 64, 1e-5),
    "tall": brownian(90, 25, 1e-4),
    "wide": brownian(25, 90, 1e-3),
    "fast": brownian(40, 40, 1e-2),
    "very fast": brownian(40, 30, 0.3),
    "one row": brownian(1, 9, 1e-2, steps=5),
    "one column": brownian(9, 1, 1e-2, steps=5),
    "1x1": brownian(1, 1, 1e-2, steps=5),
    "beyond the compiled sizes": brownian(400, 390, 1e-5, steps=2),
    "crossing": crossing,
    "splitting": splitting,
    "jumps": jumps,
    "collapse": collapse,
    "NaN comes and goes": blinking,
    "1e30": scaled(1e30),
    "1e-30": scaled(1e-30),
    "denormal in float32": scaled(1e-41),
    "rank-deficient": rank_deficient,
    "graded": graded,
    "training": training,
}


def follow(
    tracker: sk.SpectrumTracker,
    name: str,
    dtype: torch.dtype,
    check: Callable[[torch.Tensor, sk.SVD, sk.SpectrumTracker], None],
) -> None:
    """Update a tracker along the trajectory of that name and check it at every step."""
    for step in TRAJECTORIES[name]():
        A = step.to(dtype)
        result = tracker.update(A)
        assert isinstance(result, sk.SVD)
        assert result.S.dtype == dtype
        check(A, result, tracker)
        assert (tracker.work == ["not finite"]) == (not bool(A.isfinite().all()))
