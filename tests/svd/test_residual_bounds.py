"""Bounds from residuals: for every matrix k different singular values, each within its bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import spectral_kernels as sk
from spectral_kernels.svd.truth import svd, svdvals
from tests.support import matrices, tolerances


def fits(S: np.ndarray, truth: np.ndarray, bounds: np.ndarray) -> bool:
    """Return whether k different true values lie within the bounds of the k given ones."""
    # The truth is NumPy's and off by a few eps itself.
    slack = tolerances.LAPACK_OF_THE_ZOO * truth.max(initial=0.0)
    too_far = np.abs(S[:, None] - truth[None, :]) > bounds[:, None] + slack
    rows, columns = linear_sum_assignment(too_far.astype(float))
    return not too_far[rows, columns].any()


def check(A: np.ndarray, U: np.ndarray, S: np.ndarray, Vh: np.ndarray) -> np.ndarray:
    bounds = sk.bounds_from_residuals(A, U, S, Vh)
    assert fits(S, svdvals(A), bounds)
    return bounds


SPECTRA = {
    "apart": lambda r: np.linspace(1, 0.1, r),
    "graded": lambda r: np.logspace(0, -14, r),
    "clustered": lambda r: np.sort(np.repeat([1.0, 0.5, 1e-6], -(-r // 3))[:r])[::-1],
    "equal": lambda r: np.ones(r),
    "rank 2": lambda r: np.arange(r, 0, -1.0) * (np.arange(r) < 2),
    "zero": np.zeros,
}


@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    spectrum=st.sampled_from(sorted(SPECTRA)),
    noise=st.tuples(*[st.sampled_from([0.0, 1e-9, 1e-4, 0.05, 1.0])] * 3),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_it_is_a_bound(m, n, spectrum, noise, seed, data) -> None:
    """Any matrix, any subset of triplets, in any order, repeated too, with any error."""
    r = min(m, n)
    A = matrices.with_spectrum(m, n, np.ascontiguousarray(SPECTRA[spectrum](r)), seed)
    U, S, Vh = svd(A)
    picks = data.draw(st.lists(st.integers(0, r - 1), min_size=1, max_size=r))
    generator = matrices.rng(seed)
    u = U[:, picks] + noise[0] * generator.standard_normal((m, len(picks)))
    v = Vh[picks] + noise[1] * generator.standard_normal((len(picks), n))
    s = np.abs(S[picks] + noise[2] * generator.standard_normal(len(picks)))
    check(A, u, s, v)


@given(m=st.integers(1, 7), n=st.integers(1, 7), seed=st.integers(0, 10**6), data=st.data())
def test_vectors_that_have_nothing_to_do_with_the_matrix(m, n, seed, data) -> None:
    k = data.draw(st.integers(1, min(m, n)))
    generator = matrices.rng(seed)
    A, U, Vh = (generator.standard_normal(s) for s in ((m, n), (m, k), (k, n)))
    check(A, U, np.abs(generator.standard_normal(k)), Vh)


def test_null_vectors_of_the_longer_side_prove_nothing() -> None:
    """The plain bound R / N is false here: u is orthogonal to the range, and s = 0."""
    A = np.eye(5, 2) * [3.0, 2.0]
    u, v = np.eye(5)[:, 4:], 1e-9 * np.eye(1, 2)
    assert np.linalg.norm(A @ v.T) / np.linalg.norm(u) < 1e-8
    assert check(A, u, np.zeros(1), v)[0] >= 2
    assert check(A.T, v.T, np.zeros(1), u.T)[0] >= 2


def test_a_triplet_given_twice_is_not_two_values() -> None:
    """Each copy alone has residual zero; together they must reach a second value."""
    A = matrices.with_spectrum(8, 6, np.array([5.0, 3.0, 1.0, 0.5, 0.2, 0.1]))
    U, S, Vh = svd(A)
    assert check(A, U[:, :1], S[:1], Vh[:1])[0] < 1e-13
    twice = check(A, U[:, [0, 0, 2]], S[[0, 0, 2]], Vh[[0, 0, 2]])
    assert (twice[:2] >= 2 - 1e-12).all()


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128), (100, 90)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_small_for_a_good_svd(shape, dtype: torch.dtype, backend: str) -> None:
    A = torch.randn(shape).to(dtype)
    result = sk.svd(A)
    bounds = sk.bounds_from_residuals(A, *result)
    assert bounds.dtype == dtype
    # float64: the bound of the rounding of the residuals themselves, gamma_n ||A||_F.
    multiple = 16 if dtype == torch.float32 else 2 * max(shape) * min(shape) ** 0.5
    assert (bounds <= multiple * torch.finfo(dtype).eps * result.S[0]).all()
    assert fits(result.S.double().numpy(), svdvals(A.numpy()), bounds.double().numpy())


def test_it_sees_an_error_of_its_size() -> None:
    """Neither blind nor hysterical: within a factor of three of an error put in on purpose."""
    A = matrices.with_spectrum(40, 30, np.linspace(30, 1, 30))
    U, S, Vh = svd(A)
    for error in (1e-8, 1e-4, 1e-2):
        bounds = check(A, U, S + error, Vh)
        assert (bounds >= 0.99 * error).all()
        assert (bounds <= 3 * error).all()


def test_rsvd_of_a_hard_matrix(backend: str) -> None:
    A = torch.randn(200, 150)
    result = sk.rsvd(A, 10, power_iters=1, generator=torch.Generator().manual_seed(0))
    bounds = sk.bounds_from_residuals(A, *result)
    assert fits(result.S.double().numpy(), svdvals(A.numpy()), bounds.double().numpy())
    assert (bounds < 0.5 * result.S[0]).all()


@pytest.mark.parametrize("name", [*matrices.ZOO, *matrices.SCALED])
def test_the_zoo(name: str, backend: str) -> None:
    A = torch.from_numpy({**matrices.ZOO, **matrices.SCALED}[name]()).float()
    result = sk.svd(A)
    bounds = sk.bounds_from_residuals(A, *result)
    assert bounds.isfinite().all()
    assert fits(result.S.double().numpy(), svdvals(A.double().numpy()), bounds.double().numpy())
    largest = torch.finfo(torch.float32).smallest_normal + float(result.S[0])
    assert (bounds <= 1e-4 * largest).all()


def test_order_of_the_triplets_does_not_matter() -> None:
    A = torch.randn(12, 9, dtype=torch.float64)
    U, S, Vh = sk.svd(A)
    U = U + 1e-3 * torch.randn_like(U)
    order = torch.randperm(9)
    bounds = sk.bounds_from_residuals(A, U, S, Vh)
    shuffled = sk.bounds_from_residuals(A, U[:, order], S[order], Vh[order])
    torch.testing.assert_close(shuffled, bounds[order])


def test_batches_lists_and_half_precision() -> None:
    A = torch.randn(2, 3, 8, 5)
    bounds = sk.bounds_from_residuals(A, *sk.svd(A))
    assert bounds.shape == (2, 3, 5)
    torch.testing.assert_close(sk.bounds_from_residuals(A[1, 2], *sk.svd(A[1, 2])), bounds[1, 2])
    ragged = [A[0, 0], torch.randn(4, 9).half(), torch.empty(0, 3)]
    U, S, Vh = zip(*sk.svd(ragged), strict=True)
    listed = sk.bounds_from_residuals(ragged, list(U), list(S), list(Vh))
    assert [x.shape for x in listed] == [(5,), (4,), (0,)]
    assert listed[1].dtype == torch.float32
    assert isinstance(sk.bounds_from_residuals(*map(np.asarray, (A, *sk.svd(A)))), np.ndarray)


def test_special_values() -> None:
    A = torch.randn(3, 6, 4)
    U, S, Vh = sk.svd(A)
    clean = sk.bounds_from_residuals(A, U, S, Vh)
    for spoil in (A, U, S, Vh):
        parts = [x.clone() for x in (A, U, S, Vh)]
        where = next(i for i, x in enumerate((A, U, S, Vh)) if x is spoil)
        parts[where][1, 0] = float("nan")
        got = sk.bounds_from_residuals(*parts)
        assert got[1].isnan().all()
        torch.testing.assert_close(got[[0, 2]], clean[[0, 2]])
    negative = sk.bounds_from_residuals(A[0], U[0], -S[0], Vh[0])
    assert negative.isinf().all()
    nothing = sk.bounds_from_residuals(A[0], torch.zeros(6, 1), torch.ones(1), torch.zeros(1, 4))
    assert nothing.isinf().all()
    huge = sk.bounds_from_residuals(
        A[0].double(), 1e200 * U[0].double(), S[0].double(), Vh[0].double()
    )
    assert not (huge < 1).any()
