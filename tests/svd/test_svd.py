"""svd and svdvals against NumPy float64, within the numerics contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spectral_kernels as sk
from spectral_kernels.svd import truth
from spectral_kernels.svd.op import svd_list, svdvals_list
from tests.support import matrices
from tests.support.svd_checks import ALL, check_values, check_vectors


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_values(name: str, dtype: torch.dtype, every_isa: str) -> None:
    A = torch.from_numpy(ALL[name]()).to(dtype)
    check_values(sk.svdvals(A), A)


@pytest.mark.parametrize("n", [150, 200, 250, 300])
def test_large_values_do_not_drift(n: int, every_isa: str) -> None:
    # Most of the spectrum is far below eps sigma_1: hundreds of passes over the few large values,
    # which an ulp to the same side in each would move by 20 eps sigma_1.
    A = torch.from_numpy(matrices.hilbert(n))
    check_values(sk.svdvals(A), A)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_vectors(name: str, dtype: torch.dtype, every_isa: str) -> None:
    A = torch.from_numpy(ALL[name]()).to(dtype)
    result = sk.svd(A)
    check_values(result.S, A)
    check_vectors(result, A)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(8, 8), (40, 30), (30, 100)])
def test_half_precision_is_read_as_it_is(
    dtype: torch.dtype, shape: tuple[int, int], every_isa: str
) -> None:
    A = torch.randn(shape).to(dtype)
    check_values(sk.svdvals(A), A)
    result = sk.svd(A)
    assert result.U.dtype == result.Vh.dtype == torch.float32
    check_values(result.S, A)
    check_vectors(result, A)
    # The same numbers in float32 are the same matrix.
    assert torch.equal(sk.svdvals(A.float()), sk.svdvals(A))


def test_float16_extremes(every_isa: str) -> None:
    A = torch.tensor([[65504.0, 6e-8, -65504.0], [0.0, 6.1e-5, 1.0]], dtype=torch.float16)
    check_values(sk.svdvals(A), A)
    check_vectors(sk.svd(A), A)


@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (70, 40)])
def test_layouts(shape: tuple[int, int], dtype: torch.dtype, every_isa: str) -> None:
    base = torch.randn(shape).to(dtype)
    for A in matrices.layouts(base).values():
        before = A.clone()
        check_values(sk.svdvals(A), base)
        check_vectors(sk.svd(A), base)
        assert torch.equal(A, before)


def test_expanded_batch(backend: str) -> None:
    A = torch.randn(20, 10)
    S = sk.svdvals(A.expand(3, 2, 20, 10))
    assert S.shape == (3, 2, 10)
    assert torch.equal(S[2, 1], S[0, 0])
    check_values(S[1, 1], A)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (33, 40), (100, 30)])
@pytest.mark.parametrize("batch", [(1,), (5,), (19,), (2, 3), (2, 1, 2)])
def test_batches(batch: tuple[int, ...], shape: tuple[int, int], every_isa: str) -> None:
    A = torch.randn(*batch, *shape)
    S, (U, s, Vh) = sk.svdvals(A), sk.svd(A)
    for index in np.ndindex(batch):
        check_values(S[index], A[index])
        check_vectors(sk.SVD(U[index], s[index], Vh[index]), A[index])


def test_batch_with_permuted_dimensions(backend: str) -> None:
    A = torch.randn(12, 3, 9, 2).permute(3, 1, 0, 2)
    S = sk.svdvals(A)
    for index in np.ndindex(2, 3):
        check_values(S[index], A[index])


@pytest.mark.parametrize("count", [1, 7, 40])
def test_ragged_lists(count: int, every_isa: str) -> None:
    shapes = [(3, 5), (64, 64), (20, 90), (1, 1), (40, 40), (17, 2)]
    tensors = [torch.randn(shapes[i % len(shapes)]) for i in range(count)]
    tensors[count // 2] = tensors[count // 2].double()
    values, factors = sk.svdvals(tensors), sk.svd(tuple(tensors))
    assert isinstance(values, list)
    assert isinstance(factors, list)
    for A, S, usv in zip(tensors, values, factors, strict=True):
        check_values(S, A)
        check_vectors(usv, A)


def test_ragged_list_with_batches_and_empties(backend: str) -> None:
    tensors = [torch.randn(2, 5, 4), torch.empty(0, 3), torch.randn(6, 6), torch.empty(0, 2, 2)]
    S = sk.svdvals(tensors)
    assert [tuple(x.shape) for x in S] == [(2, 4), (0,), (6,), (0, 2)]
    check_values(S[0][1], tensors[0][1])
    check_values(S[2], tensors[2])
    assert sk.svdvals([]) == []
    assert sk.svd([]) == []


@pytest.mark.parametrize("shape", matrices.EMPTY, ids=str)
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    A = torch.empty(shape)
    *batch, m, n = shape
    r = min(m, n)
    U, S, Vh = sk.svd(A)
    assert U.shape == (*batch, m, r)
    assert S.shape == sk.svdvals(A).shape == (*batch, r)
    assert Vh.shape == (*batch, r, n)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (50, 40), (400, 390)])
def test_nan_stays_in_its_matrix(bad: float, shape: tuple[int, int], every_isa: str) -> None:
    A = torch.randn(5, *shape)
    A[3, shape[0] // 2, 1] = bad
    S, (U, s, Vh) = sk.svdvals(A), sk.svd(A)
    for x in (S, U, s, Vh):
        assert x[3].isnan().all()
        assert x[[0, 1, 2, 4]].isfinite().all()
    for i in (2, 4):
        check_values(S[i], A[i])
        check_vectors(sk.SVD(U[i], s[i], Vh[i]), A[i])


def test_one_nan_among_ragged_matrices(backend: str) -> None:
    tensors = [torch.randn(8, 8), torch.full((40, 9), float("nan")), torch.randn(40, 9)]
    clean = sk.svd([tensors[0], tensors[2]])
    for got in (sk.svd(tensors), svd_list(tensors)):
        assert all(x.isnan().all() for x in got[1])
        for a, b in zip((got[0], got[2]), clean, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
def test_two_runs_are_equal_bit_by_bit(dtype: torch.dtype, every_isa: str) -> None:
    tensors = [torch.randn(s).to(dtype) for s in ((40, 40), (3, 3), (6, 20, 8), (200, 64))]
    first, second = sk.svd(tensors), sk.svd(tensors)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for x, y in zip(sk.svdvals(tensors), sk.svdvals(tensors), strict=True):
        assert torch.equal(x, y)


def test_the_number_of_threads_changes_nothing(backend: str) -> None:
    A = torch.randn(7, 50, 30)
    threads = torch.get_num_threads()
    many = sk.svd(A)
    try:
        torch.set_num_threads(1)
        one = sk.svd(A)
    finally:
        torch.set_num_threads(threads)
    if backend == "cpu":
        assert all(torch.equal(x, y) for x, y in zip(many, one, strict=True))
    torch.testing.assert_close(many.S, one.S)


def test_subspaces_of_clusters(every_isa: str) -> None:
    """In a cluster single vectors are arbitrary; the subspace is not."""
    sigma = np.repeat([5.0, 2.0, 0.1], 10)
    A = matrices.with_spectrum(60, 45, sigma)
    true = truth.svd(A)
    # ||error|| / gap (Wedin 1972), with a gap of 0.1 below the third cluster.
    for dtype, allowed in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        U, _, Vh = sk.svd(torch.from_numpy(A).to(dtype))
        for block in (slice(0, 10), slice(10, 20), slice(20, 30)):
            left, right = true.U[:, block], true.Vh[block].T
            u, v = U[:, block].double().numpy(), Vh[block].T.double().numpy()
            assert np.linalg.norm(u - left @ (left.T @ u), 2) < allowed
            assert np.linalg.norm(v - right @ (right.T @ v), 2) < allowed


@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 70), "m"), data.draw(st.integers(1, 70), "n")
    batch = data.draw(st.integers(1, 20), "batch")
    seed = data.draw(st.integers(0, 2**31), "seed")
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(batch, n, m, generator=generator).mT
    S, (U, s, Vh) = sk.svdvals(A), sk.svd(A)
    i = batch - 1
    check_values(S[i], A[i])
    check_vectors(sk.SVD(U[i], s[i], Vh[i]), A[i])


def test_list_functions_equal_the_public_ones(backend: str) -> None:
    tensors = [torch.randn(30, 20), torch.randn(2, 8, 8), torch.randn(5, 9, requires_grad=True)]
    for a, b in zip(sk.svd(tensors), svd_list(tensors), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for x, y in zip(sk.svdvals(tensors), svdvals_list(tensors), strict=True):
        assert torch.equal(x, y)
        assert not y.requires_grad
    assert svd_list([]) == []
    assert svdvals_list([]) == []
