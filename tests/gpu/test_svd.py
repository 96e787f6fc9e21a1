"""The SVD backend of CUDA on a device: hard matrices, every size of kernel, no synchronisation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.svd import cuda_backend
from spectral_kernels.svd.jacobi_plan import vectors_plan
from tests.support.svd_checks import ALL, check_values, check_vectors

pytestmark = pytest.mark.gpu

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
SHAPES = [(1, 1), (8, 8), (13, 16), (32, 31), (33, 33), (64, 64), (96, 130), (160, 160), (220, 190),
          (59, 512), (2000, 60), (300, 280)]  # fmt: skip


@pytest.fixture(autouse=True)
def _device() -> None:
    if launcher.refusal() is not None:
        pytest.skip(str(launcher.refusal()))


def check(A: torch.Tensor, result: sk.SVD, values: torch.Tensor) -> None:
    """Check a batch (..., m, n) on the device against NumPy."""
    A, values = A.cpu(), values.cpu()
    U, S, Vh = (x.cpu() for x in result)
    for i in np.ndindex(A.shape[:-2]):
        check_values(values[i], A[i])
        check_values(S[i], A[i])
        check_vectors(sk.SVD(U[i], S[i], Vh[i]), A[i])


@pytest.mark.parametrize("name", ALL)
@FLOATS
def test_hard_matrices(name: str, dtype: torch.dtype) -> None:
    A = torch.from_numpy(ALL[name]()).to("cuda", dtype)
    check(A, cuda_backend.svd([A])[0], cuda_backend.svdvals([A])[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@FLOATS
def test_batches(shape: tuple[int, int], dtype: torch.dtype) -> None:
    A = torch.randn(19, *shape, device="cuda", dtype=dtype)
    # Blocks of one launch run at the same time here, and on the host they do not.
    A[11, 0, 0] = float("nan")
    result, values = cuda_backend.svd([A])[0], cuda_backend.svdvals([A])[0]
    for x in (*result, values):
        assert x[11].isnan().all()
    keep = [0, 10, 12, 18]
    check(A[keep], sk.SVD(*(x[keep] for x in result)), values[keep])


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("shape", [(9, 9), (32, 20), (48, 40), (128, 128), (200, 200)], ids=str)
def test_nothing_waits(shape: tuple[int, int], no_synchronisation: None) -> None:
    A = torch.randn(5, *shape, device="cuda")
    assert vectors_plan(*shape, A.dtype, launcher.limits(A.device).shared_bytes) is not None
    cuda_backend.svd([A])
