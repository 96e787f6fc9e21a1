"""Matrices given as U Sigma Vh, and their values by NumPy."""

from __future__ import annotations

import math

import numpy as np
import torch

from spectral_kernels.entry.results import Decomposed
from tests.support import matrices


def gaussian(m: int, n: int, k: int, batch=(), dtype=torch.float32, seed: int = 0) -> Decomposed:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*batch, m, k), (*batch, k, k), (*batch, k, n))
    return Decomposed(
        *(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    )


def exact(x: Decomposed) -> np.ndarray:
    """Return U Sigma Vh in extended precision, of which float64 is the rounding."""
    U, Sigma, Vh = (part.double().numpy().astype(np.longdouble) for part in x)
    return U @ Sigma @ Vh


def reference_values(x: Decomposed) -> np.ndarray:
    """Singular values to about 1e-15 sigma_1: of the product in extended precision, rounded."""
    product = exact(x)
    scale = np.abs(product).max(axis=(-2, -1), keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    values = np.linalg.svd((product / scale).astype(np.float64), compute_uv=False)
    k = x.Sigma.shape[-1]
    return values[..., :k] * scale[..., 0]


def whole(x: Decomposed) -> torch.Tensor:
    """Return U Sigma Vh in float64."""
    U, Sigma, Vh = (part.double() for part in x)
    return U @ Sigma @ Vh


EPS32, EPS64 = 2.0**-23, 2.0**-52


def trained(m: int, n: int, k: int, dtype=torch.float32, drift: float = 0.1) -> Decomposed:
    """Factors as training leaves them: not far from orthonormal, and a core that is dense."""
    r = matrices.rng(3)
    U = matrices.orthonormal(m, k) + drift * r.standard_normal((m, k)) / math.sqrt(m)
    V = matrices.orthonormal(n, k, 1) + drift * r.standard_normal((n, k)) / math.sqrt(n)
    Sigma = np.diag(np.linspace(2.0, 0.1, k)) + drift * r.standard_normal((k, k)) / k
    return Decomposed(*(torch.from_numpy(x).to(dtype) for x in (U, Sigma, V.T.copy())))


BAD: dict[str, Decomposed] = {}


SHAPES = [
    (200, 150, 70),
    (20, 12, 5),
    (12, 20, 12),
    (9, 9, 9),
    (4, 20, 7),
    (20, 4, 7),
    (5, 6, 9),
    (1, 1, 1),
]


def bad(name: str, U, Sigma, Vh, dtype=torch.float32) -> None:
    BAD[name] = Decomposed(*(torch.as_tensor(np.asarray(x)).to(dtype) for x in (U, Sigma, Vh)))


_G = matrices.gaussian


bad("equal columns", np.ones((20, 6)), _G(6, 6), _G(6, 15))
bad("zero U", np.zeros((20, 6)), _G(6, 6), _G(6, 15))
bad("zero Sigma", _G(20, 6), np.zeros((6, 6)), _G(6, 15))
bad("zero column", _G(20, 6) * (np.arange(6) != 2), _G(6, 6), _G(6, 15))
bad("rank 2 of 6", _G(20, 2) @ _G(2, 6, 1), _G(6, 6), _G(6, 15))
bad("Hilbert", matrices.hilbert(30)[:, :9], _G(9, 9), matrices.hilbert(40)[:9])
bad("nearly dependent", np.ones((40, 8)) + 1e-4 * _G(40, 8), _G(8, 8), _G(8, 30))
bad("Kahan", np.vstack([matrices.kahan(30), _G(10, 30) * 1e-5]), np.eye(30), _G(30, 40))
bad("columns from 1e-12 to 1e12", _G(40, 13) * np.logspace(-12, 12, 13),
    np.diag(np.logspace(12, -12, 13)), _G(13, 25))  # fmt: skip
bad("Sigma of rank 1", _G(40, 13), np.ones((13, 13)), _G(13, 25))
bad("1e30", 1e30 * _G(20, 6), 1e-30 * _G(6, 6), _G(6, 15))
bad("1e-30", 1e-30 * _G(20, 6), 1e30 * _G(6, 6), _G(6, 15))
bad("denormal core", 1e-20 * _G(20, 6), 1e-20 * _G(6, 6), _G(6, 15))
bad("float64 at its ends", 1e300 * _G(20, 6), 1e-300 * _G(6, 6), _G(6, 15), torch.float64)
bad("float64, 1e-200", 1e-200 * _G(20, 6), 1e100 * _G(6, 6), _G(6, 15), torch.float64)
bad("float64 Hilbert", matrices.hilbert(30)[:, :9], _G(9, 9), matrices.hilbert(40)[:9],
    torch.float64)  # fmt: skip
