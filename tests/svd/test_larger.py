"""Vectors and values of larger float32 matrices from the eigenvectors of a float64 Gram matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spectral_kernels.svd import larger
from tests.support import matrices
from tests.support.svd_checks import check_values, check_vectors

N = 96


def spectrum(sigma: Any, m: int = N) -> torch.Tensor:
    sigma = np.asarray(sigma, dtype=np.float64)
    return torch.from_numpy(matrices.with_spectrum(m, N, sigma)).float()


CASES: dict[str, Callable[[], torch.Tensor]] = {
    "square": lambda: torch.randn(260, 250),
    "tall": lambda: torch.randn(700, 230),
    "wide": lambda: torch.randn(230, 700),
    "identity": lambda: torch.eye(N),
    "constant": lambda: torch.ones(2 * N, N),
    "zero": lambda: torch.zeros(2 * N, N),
    "one nonzero": lambda: torch.arange(2 * N * N).eq(800).float().reshape(2 * N, N),
    "rank 5": lambda: torch.randn(2 * N, 5) @ torch.randn(5, N),
    "repeated": lambda: spectrum(np.repeat([2.0, 1.0], N // 2)),
    "clusters": lambda: spectrum(np.repeat([1.0, 0.5, 1e-3], 32) * (1 + 1e-7 * np.arange(N))),
    "falling by 1e-7": lambda: spectrum(np.logspace(0, -7, N)),
    "falling by 1e-9": lambda: spectrum(np.logspace(0, -9, N), 2 * N),
    "falling by 1e-14": lambda: spectrum(np.logspace(0, -14, N)),
    "tail at the root of eps": lambda: spectrum([1.0] * 8 + [1e-8] * (N - 8)),
    "graded": lambda: torch.from_numpy(matrices.graded(2 * N, N)).float(),
    "1e30": lambda: 1e30 * torch.randn(2 * N, N),
    "1e-30": lambda: 1e-30 * torch.randn(2 * N, N),
    "transposed": lambda: torch.randn(N, 2 * N).mT,
}


@pytest.mark.parametrize("name", CASES)
def test_svd(name: str) -> None:
    A = CASES[name]()
    result = larger.svd(A)
    check_values(result.S, A)
    check_vectors(result, A)
    check_values(larger.svdvals(A), A)


def test_batches_and_half_precision() -> None:
    A = torch.randn(2, 3, 40, 50).bfloat16()
    result = larger.svd(A)
    S = larger.svdvals(A)
    assert (result.U.shape, S.shape, result.Vh.shape) == (
        (2, 3, 40, 40),
        (2, 3, 40),
        (2, 3, 40, 50),
    )
    for i, j in np.ndindex(2, 3):
        check_values(S[i, j], A[i, j])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_nan_stays_in_its_matrix(bad: float, shape: tuple[int, int]) -> None:
    A = torch.randn(3, *shape)
    A[1, 5, 7] = bad
    result = larger.svd(A)
    S = larger.svdvals(A)
    for x in (*result, S):
        assert x[1].isnan().all()
    for i in (0, 2):
        check_values(S[i], A[i])
        check_vectors(type(result)(*(x[i] for x in result)), A[i])


class Reads(TorchDispatchMode):
    """Fails where the host reads a number of a tensor, which waits for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "the host reads a number"
        assert "nonzero" not in str(func), "the host waits for a count"
        return func(*args, **(kwargs or {}))


def test_nothing_is_decided_by_the_host() -> None:
    A = torch.randn(3, 50, 30)
    A[1] = float("nan")
    with Reads():
        larger.svd(A)
        larger.svdvals(A)
    with pytest.raises(AssertionError, match="reads a number"), Reads():
        bool(A.isnan().any())
