"""svdvals beyond a short side of 384, and the Sturm counts that end every Gram path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.svd import truth
from tests.support import matrices

EPS = float(np.finfo(np.float32).eps)
# Of sigma_1. Measured on all inputs of this file: 0.5 eps, which is the rounding of the result.
LIMIT = 0.75 * EPS


def check(S: torch.Tensor, A: Any) -> None:
    true = truth.svdvals(np.asarray(A, dtype=np.float64))
    assert S.dtype == torch.float32
    got = S.double().numpy()
    assert np.abs(got - true).max() <= LIMIT * true[0]
    assert (np.diff(got) <= 0).all()
    assert (got >= 0).all()


def spectrum(sigma: Any) -> torch.Tensor:
    """Return a float32 matrix with very nearly these singular values."""
    n = len(sigma)
    return torch.from_numpy(matrices.with_spectrum(n, n, np.asarray(sigma))).float()


LARGE: dict[str, Callable[[], torch.Tensor]] = {
    "random 400x390": lambda: torch.randn(400, 390),
    "random 512": lambda: torch.randn(512, 512),
    "random 769x1030": lambda: torch.randn(769, 1030),
    "tall": lambda: torch.randn(1500, 450),
    "wide": lambda: torch.randn(450, 1500),
    "identity": lambda: torch.eye(500),
    "orthogonal": lambda: torch.from_numpy(matrices.orthonormal(450, 450)).float(),
    "constant": lambda: torch.ones(512, 512),
    "rank 5": lambda: torch.randn(512, 5) @ torch.randn(5, 512),
    "pairs": lambda: spectrum(np.repeat(np.linspace(1, 2, 200), 2)),
    "clusters": lambda: spectrum(np.repeat([1.0, 0.5, 1e-3], 150) * (1 + 1e-7 * np.arange(450))),
    "falling by 1e-10": lambda: spectrum(np.logspace(0, -10, 400)),
    "graded": lambda: torch.from_numpy(matrices.graded(500, 420)).float(),
    "decoupled blocks": lambda: torch.block_diag(*[torch.randn(2, 2) for _ in range(220)]),
    "1e30": lambda: 1e30 * torch.randn(400, 400),
    "1e-30": lambda: 1e-30 * torch.randn(400, 400),
}


@pytest.mark.parametrize("name", LARGE)
def test_large(name: str, every_isa: str) -> None:
    torch.manual_seed(0)
    A = LARGE[name]()
    check(sk.svdvals(A), A)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_large_half_precision(dtype: torch.dtype, backend: str) -> None:
    A = torch.randn(450, 400).to(dtype)
    check(sk.svdvals(A), A.float())


def test_large_layouts_and_expanded_batches(backend: str) -> None:
    base = torch.randn(410, 395)
    expected = sk.svdvals(base)
    for A in matrices.layouts(base).values():
        assert torch.equal(sk.svdvals(A), expected)
    assert torch.equal(sk.svdvals(base.expand(2, 410, 395))[1], expected)


def test_large_matrices_in_a_list(backend: str) -> None:
    """Each result is that of the matrix alone, bit by bit, whatever its neighbours and threads."""
    tensors = [torch.randn(s) for s in ((512, 420), (20, 20), (400, 900), (64, 48), (390, 390))]
    tensors.insert(2, torch.full((500, 400), float("nan")))
    threads = torch.get_num_threads()
    together = sk.svdvals(tensors)
    try:
        torch.set_num_threads(1)
        alone = [sk.svdvals(A) for A in tensors]
    finally:
        torch.set_num_threads(threads)
    assert together[2].isnan().all()
    for i in (0, 1, 3, 4, 5):
        check(together[i], tensors[i])
        if backend == "cpu":
            assert torch.equal(together[i], alone[i])


@pytest.mark.parametrize("shape", [(400, 395), (300, 700), (900, 261)])
def test_threads_that_share_a_gram_matrix(shape: tuple[int, int], backend: str) -> None:
    A = torch.randn(shape)
    threads = torch.get_num_threads()
    found = []
    try:
        for team in (1, 2, 3, 7):
            torch.set_num_threads(team)
            found.append(sk.svdvals([A, A[:, :20]]))
    finally:
        torch.set_num_threads(threads)
    for one in found:
        check(one[0], A)
        if backend == "cpu":
            assert all(torch.equal(x, y) for x, y in zip(found[0], one, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_entry(bad: float, every_isa: str) -> None:
    A = torch.randn(3, 400, 500)
    A[1, 399, 0] = bad
    S = sk.svdvals(A)
    assert S[1].isnan().all()
    check(S[0], A[0])
    check(S[2], A[2])


# Values whose squares are where the search begins (its grid has 6 to 40 points), and beside it.
GRIDS = [np.sqrt(np.arange(points) / (points - 1)) for points in (6, 12, 40)]


@pytest.mark.parametrize("grid", GRIDS, ids=len)
@pytest.mark.parametrize("shift", [0.0, 1e-7, -1e-7])
def test_values_on_the_starting_grid(grid: Any, shift: float, every_isa: str) -> None:
    sigma = np.zeros(40)
    sigma[: len(grid)] = np.clip(grid + shift, 0, 1)
    check(sk.svdvals(torch.diag(torch.from_numpy(sigma).float())), np.diag(np.float32(sigma)))


@pytest.mark.parametrize("shape", [(100, 1), (100, 2), (3, 200), (70, 33), (47, 48), (64, 64)])
def test_small_matrices_by_sturm_counts(shape: tuple[int, int], every_isa: str) -> None:
    A = torch.randn(shape)
    check(sk.svdvals(A), A)
    check(sk.svdvals(A[:1].repeat(shape[0], 1)), A[:1].repeat(shape[0], 1))
    assert not sk.svdvals(torch.zeros(shape)).any()


def test_zero_values_stay_zero(every_isa: str) -> None:
    A = torch.zeros(90, 80)
    A[3, 5] = 7.0
    S = sk.svdvals(A)
    assert S[0] == 7.0
    # The root of the resolution of Sturm counts would be 2e-8.
    assert S[1] <= 7e-9


def test_equal_values_come_out_equal(every_isa: str) -> None:
    assert torch.equal(sk.svdvals(3.0 * torch.eye(450)), torch.full((450,), 3.0))
