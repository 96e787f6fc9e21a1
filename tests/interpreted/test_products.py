"""Gram matrices from the upper tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_kernels.products import triton_backend
from spectral_kernels.products.gram import gram
from spectral_kernels.runtime import dispatch
from tests.support import matrices

SHAPES = [(1, 1), (5, 3), (3, 5), (40, 64), (65, 33), (200, 130), (700, 20), (20, 2000)]


def truth(A: torch.Tensor) -> np.ndarray:
    X = A.double().numpy()
    X = X if X.shape[-2] >= X.shape[-1] else np.swapaxes(X, -2, -1)
    return np.swapaxes(X, -2, -1) @ X


def test_the_kernels_run() -> None:
    module = dispatch.backend("products", "cpu")
    assert module.__name__ == "spectral_kernels.products.triton_backend"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_shapes_and_dtypes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    A = torch.from_numpy(matrices.gaussian(*shape)).to(dtype)
    G = gram(A)
    assert G.dtype == torch.float64
    np.testing.assert_allclose(G.numpy(), truth(A), rtol=0, atol=1e-12 * max(shape))
    # Mirrored, not computed twice.
    assert torch.equal(G, G.mT)


def test_layouts_and_batches() -> None:
    base = torch.randn(70, 33)
    for A in matrices.layouts(base).values():
        np.testing.assert_allclose(gram(A).numpy(), truth(base), atol=1e-11)
    A = torch.randn(3, 2, 300, 70)[:, :, 7:, :].transpose(0, 1)
    np.testing.assert_allclose(gram(A).numpy(), truth(A), atol=1e-11)
    assert gram(torch.empty(0, 4, 5)).shape == (0, 4, 4)
    assert torch.equal(gram(torch.empty(3, 5, 0)), torch.empty(3, 0, 0, dtype=torch.float64))


def test_small_values_survive() -> None:
    """Squared in float64: at 1e-6 sigma_1 there would be nothing left in float32."""
    sigma = np.logspace(0, -6, 20)
    A = torch.from_numpy(matrices.with_spectrum(90, 20, sigma)).float()
    exact = np.linalg.svd(A.double().numpy(), compute_uv=False)
    found = torch.linalg.eigvalsh(gram(A)).flip(0).sqrt().numpy()
    assert np.abs(found - exact).max() < 1e-8
    single = torch.linalg.eigvalsh(A.mT @ A).flip(0).clamp_min(0).sqrt().numpy()
    assert np.abs(single - exact).max() > 1e-5


@pytest.mark.parametrize("depth", [1, 31, 32, 33, 255, 256, 513, 4096, 5000])
@pytest.mark.parametrize("side", [1, 40, 65, 300])
def test_plans_cover_the_depth_with_no_part_empty(depth: int, side: int) -> None:
    launch = triton_backend.plan(1, depth, side)
    step = triton_backend.share(depth, launch["splits"])
    assert step % launch["DEPTH"] == 0
    assert (launch["splits"] - 1) * step < depth <= launch["splits"] * step


def test_sums_of_parts() -> None:
    """A matrix that is the sum of several blocks, as products that split their depth leave it."""
    parts = torch.randn(2, 3, 50, 10)
    offsets = torch.arange(2) * parts.stride(0)
    G = triton_backend.partial_grams(
        parts, offsets, 50, 10, 10, 1, parts=3, stride_part=500, align=4
    ).sum(1)
    np.testing.assert_allclose(G.numpy(), truth(parts.double().sum(1)), atol=1e-12)
