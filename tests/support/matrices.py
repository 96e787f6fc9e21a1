"""Matrices that break solvers, in NumPy float64; tests cast them to the dtype under test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def orthonormal(n: int, k: int, seed: int = 0) -> Array:
    return np.linalg.qr(rng(seed).standard_normal((n, k))).Q


def with_spectrum(m: int, n: int, sigma: Array, seed: int = 0) -> Array:
    """Return an (m, n) matrix with the given singular values and random vectors."""
    k = len(sigma)
    return (orthonormal(m, k, seed) * sigma) @ orthonormal(n, k, seed + 1).T


def gaussian(m: int, n: int, seed: int = 0) -> Array:
    return rng(seed).standard_normal((m, n))


def graded(m: int, n: int) -> Array:
    """Rows and columns fall by factors: the smallest values are far below eps * sigma_1."""
    return gaussian(m, n) * np.logspace(0, -8, m)[:, None] * np.logspace(0, -4, n)


def hilbert(n: int) -> Array:
    i = np.arange(n)
    return 1.0 / (i[:, None] + i + 1)


def kahan(n: int, theta: float = 1.2) -> Array:
    """Upper triangular, ill-conditioned without a small diagonal entry (Kahan 1966)."""
    c, s = np.cos(theta), np.sin(theta)
    return np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))


def wilkinson(n: int) -> Array:
    """W_n^+: pairs of eigenvalues that agree to many digits and are not equal."""
    half = (n - 1) / 2
    return np.diag(np.abs(np.arange(n) - half)) + np.diag(np.ones(n - 1), 1).T + np.eye(n, k=1)


def clustered(m: int, n: int) -> Array:
    """Three groups of singular values, each within 1e-7 of each other."""
    r = min(m, n)
    sigma = np.repeat([1.0, 0.5, 1e-3], -(-r // 3))[:r] + 1e-7 * rng().random(r)
    return with_spectrum(m, n, -np.sort(-sigma))


def bidiagonal_zero(n: int) -> Array:
    """Bidiagonal with zeros on the diagonal and off it: splits, and singular."""
    d, e = np.ones(n), np.ones(n - 1)
    d[n // 2], e[n // 3] = 0.0, 0.0
    return np.diag(d) + np.diag(e, 1)


ZOO: dict[str, Callable[[], Array]] = {
    "random 8x8": lambda: gaussian(8, 8),
    "random 16x16": lambda: gaussian(16, 16),
    "random 31x17": lambda: gaussian(31, 17),
    "random 33x33": lambda: gaussian(33, 33),
    "random 64x64": lambda: gaussian(64, 64),
    "random 65x130": lambda: gaussian(65, 130),
    "random 128x128": lambda: gaussian(128, 128),
    "tall 512x59": lambda: gaussian(512, 59),
    "wide 59x512": lambda: gaussian(59, 512),
    "very tall 1000x3": lambda: gaussian(1000, 3),
    "very wide 2x1500": lambda: gaussian(2, 1500),
    "beyond the compiled sizes of float64": lambda: gaussian(400, 390),
    "graded 48x48": lambda: graded(48, 48),
    "graded 100x20": lambda: graded(100, 20),
    "Hilbert 12": lambda: hilbert(12),
    "Hilbert 60": lambda: hilbert(60),
    "Kahan 30": lambda: kahan(30),
    "Kahan 100": lambda: kahan(100),
    "Wilkinson 21": lambda: wilkinson(21),
    "Wilkinson 101": lambda: wilkinson(101),
    "clustered 24x24": lambda: clustered(24, 24),
    "clustered 90x70": lambda: clustered(90, 70),
    "identity 7": lambda: np.eye(7),
    "identity 96": lambda: np.eye(96),
    "repeated 40x50": lambda: with_spectrum(40, 50, np.repeat([3.0, 1.0], 20)),
    "rank 1 of 20x30": lambda: with_spectrum(20, 30, np.array([2.0])),
    "rank 5 of 128x64": lambda: with_spectrum(128, 64, np.arange(5.0, 0.0, -1.0)),
    "zero columns": lambda: gaussian(40, 30) * (np.arange(30) % 3 > 0),
    "zero rows": lambda: gaussian(40, 30) * (np.arange(40) % 3 > 0)[:, None],
    "one nonzero": lambda: np.eye(1, 45 * 37, 800).reshape(45, 37),
    "constant": lambda: np.full((50, 40), 0.1),
    "diagonal, unsorted": lambda: np.diag(rng().permutation(np.arange(50.0) - 10)),
    "bidiagonal with zeros": lambda: bidiagonal_zero(70),
    "upper triangular": lambda: np.triu(gaussian(60, 60)),
    "zero 6x4": lambda: np.zeros((6, 4)),
    "zero 50x60": lambda: np.zeros((50, 60)),
    "1x1": lambda: np.array([[-3.0]]),
    "1xn": lambda: gaussian(1, 40),
    "mx1": lambda: gaussian(40, 1),
    "2x2": lambda: gaussian(2, 2),
    "dominated": lambda: gaussian(40, 40) + 1e6 * np.outer(np.ones(40), np.ones(40)),
}

# Scales that only the wide formats hold. Denormals of float32 lie below 1.2e-38.
SCALED: dict[str, Callable[[], Array]] = {
    "1e30": lambda: 1e30 * gaussian(40, 30),
    "1e30, small": lambda: 1e30 * gaussian(9, 7),
    "1e-30": lambda: 1e-30 * gaussian(40, 30),
    "1e-30, small": lambda: 1e-30 * gaussian(9, 7),
    "denormal": lambda: 1e-41 * gaussian(40, 30),
    "denormal, small": lambda: 1e-41 * gaussian(9, 7),
    "one denormal": lambda: np.full((1, 1), 1.4e-45),
    "1e30 beside 1e-30": lambda: gaussian(20, 20) * np.logspace(30, -30, 20),
}

EMPTY = [(0, 5), (5, 0), (0, 0), (0, 4, 3), (2, 0, 3), (2, 3, 0), (2, 0, 3, 4)]

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def layouts(A: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return tensors equal to ``A`` (m, n) in other memory layouts."""
    m, n = A.shape
    padded = torch.full((m + 3, 2 * n + 5), float("nan"), dtype=A.dtype)
    view = padded[1 : m + 1, 2 : 2 * n + 2 : 2]
    view.copy_(A)
    return {
        "contiguous": A.contiguous(),
        "transposed": A.t().contiguous().t(),
        "strided in both sides": view,
        "offset": torch.cat([A.new_zeros(1), A.flatten()])[1:].view(m, n),
    }
