"""Randomized SVD: accuracy, negative controls, warm starts, determinism."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.rsvd import truth
from spectral_kernels.rsvd.op import rsvd_list
from spectral_kernels.svd.truth import svdvals
from tests.support import matrices


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def low_rank_with_noise(m: int, n: int, rank: int, noise: float) -> np.ndarray:
    """Return ten-fold signal over a flat floor of noise, as scikit-learn's tests make it."""
    floor = np.full(min(m, n), noise)
    floor[:rank] = 1.0
    return matrices.with_spectrum(m, n, floor)


def error(A: np.ndarray, result: sk.SVD) -> float:
    U, S, Vh = (np.asarray(x, dtype=np.float64) for x in result)
    return float(np.linalg.norm(A - (U * S) @ Vh))


def check_orthonormal(result: sk.SVD, tolerance: float) -> None:
    U, Vh = result.U.double(), result.Vh.double()
    eye = torch.eye(result.S.shape[-1], dtype=torch.float64)
    assert (U.mT @ U - eye).abs().max() < tolerance
    assert (Vh @ Vh.mT - eye).abs().max() < tolerance


SHAPES = [(100, 80), (80, 100), (512, 128), (60, 300), (12, 12), (300, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_low_rank_is_found(shape: tuple[int, int], dtype: torch.dtype, every_isa: str) -> None:
    sigma = np.logspace(0, -2, 6)
    A = matrices.with_spectrum(*shape, sigma)
    result = sk.rsvd(torch.from_numpy(A).to(dtype), 6, generator=generator())
    eps = torch.finfo(dtype).eps
    assert result.S.dtype == dtype
    np.testing.assert_allclose(result.S.double().numpy(), sigma, rtol=0, atol=8 * eps)
    assert error(A, result) < 20 * eps
    check_orthonormal(result, 40 * eps)
    pivot = result.U.gather(0, result.U.abs().argmax(dim=0, keepdim=True))
    assert (pivot > 0).all()
    assert result.U.mT.is_contiguous()


def test_without_power_iterations_noise_hides_the_signal(backend: str) -> None:
    """The negative control: a method that passes here does not use its iterations."""
    A = low_rank_with_noise(300, 200, 10, 0.3)
    best = truth.best_error(A, 10)
    tensor = torch.from_numpy(A).float()
    missed = sk.rsvd(tensor, 10, oversample=0, power_iters=0, generator=generator())
    hit = sk.rsvd(tensor, 10, oversample=8, power_iters=2, generator=generator())
    assert error(A, missed) > 1.05 * best
    assert (missed.S[5:] < 0.9).all()
    assert error(A, hit) < 1.01 * best
    assert (hit.S > 0.99).all()


def test_more_iterations_and_columns_never_hurt(backend: str) -> None:
    A = low_rank_with_noise(200, 150, 10, 0.5)
    tensor = torch.from_numpy(A)
    errors = [
        error(A, sk.rsvd(tensor, 10, oversample=p, power_iters=q, generator=generator()))
        for p, q in ((0, 0), (8, 0), (8, 1), (8, 2), (8, 6))
    ]
    assert all(b < a for a, b in itertools.pairwise(errors))


def test_many_iterations_lose_no_small_direction(backend: str) -> None:
    """Without orthonormalisation between products, sigma_8 would drown: 1e-3 ** 21 < eps."""
    A = matrices.with_spectrum(120, 90, np.logspace(0, -3, 8))
    result = sk.rsvd(torch.from_numpy(A).float(), 8, oversample=4, power_iters=10)
    np.testing.assert_allclose(result.S.numpy(), np.logspace(0, -3, 8), atol=2e-6)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (130, 70)])
@pytest.mark.parametrize("power_iters", [0, 1, 3])
def test_equals_the_reference(shape: tuple[int, int], power_iters: int, every_isa: str) -> None:
    """Same start, same subspace: the same values as the reference, hit or miss."""
    A = matrices.gaussian(*shape)
    start = matrices.gaussian(shape[1], 12, seed=5)
    want = truth.rsvd(A, start, 7, power_iters)
    got = sk.rsvd(A, 7, oversample=5, power_iters=power_iters, start=start)
    np.testing.assert_allclose(got.S, want.S, rtol=1e-9)
    assert abs(error(A, got) - error(A, want)) < 1e-9
    single = sk.rsvd(A.astype(np.float32), 7, oversample=5, power_iters=power_iters, start=start)
    np.testing.assert_allclose(single.S, want.S, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, backend: str) -> None:
    A = torch.from_numpy(matrices.with_spectrum(40, 30, np.logspace(0, -2, 30))).to(dtype)
    result = sk.rsvd(A, 5, power_iters=4, generator=generator())
    assert result.U.dtype == result.S.dtype == result.Vh.dtype == torch.float32
    np.testing.assert_allclose(result.S.numpy(), svdvals(A.double().numpy())[:5], rtol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided in both sides", "offset"])
def test_layouts(layout: str, backend: str) -> None:
    base = torch.randn(33, 50)
    A = matrices.layouts(base)[layout]
    got = sk.rsvd(A, 33, generator=generator())
    np.testing.assert_allclose(got.S.numpy(), svdvals(base.numpy()), atol=1e-4)


def test_full_rank_is_exact(backend: str) -> None:
    """With k = r the sketch spans everything, whatever oversample asks for."""
    A = matrices.gaussian(25, 18)
    np.testing.assert_allclose(sk.rsvd(A, 18, oversample=100).S, svdvals(A), rtol=1e-10)


def test_batches_and_lists(backend: str) -> None:
    A = torch.randn(2, 3, 40, 30)
    result = sk.rsvd(A, 30, generator=generator())
    assert [x.shape for x in result] == [(2, 3, 40, 30), (2, 3, 30), (2, 3, 30, 30)]
    np.testing.assert_allclose(result.S.numpy(), svdvals(A.numpy()), atol=1e-4)
    ragged = sk.rsvd([A[0, 0], torch.randn(9, 70), torch.empty(0, 5, 5)], [30, 4, 2])
    assert [tuple(x.S.shape) for x in ragged] == [(30,), (4,), (0, 2)]
    np.testing.assert_allclose(ragged[0].S.numpy(), svdvals(A[0, 0].numpy()), atol=1e-4)
    assert sk.rsvd([], 3) == []


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-41])
def test_scales(scale: float, backend: str) -> None:
    base = torch.randn(40, 30, dtype=torch.float64)
    A = (base * scale).float()
    got = sk.rsvd(A, 30, generator=generator()).S.double().numpy()
    true = svdvals(A.double().numpy())
    assert np.abs(got - true).max() <= max(2e-6 * true[0], 3e-45)


def test_zero_and_rank_deficient(every_isa: str) -> None:
    zero = sk.rsvd(torch.zeros(20, 15), 4)
    assert (zero.S == 0).all()
    check_orthonormal(zero, 1e-6)
    A = torch.from_numpy(matrices.with_spectrum(50, 40, np.array([2.0, 1.0]))).float()
    result = sk.rsvd(A, 6)
    np.testing.assert_allclose(result.S.numpy(), [2, 1, 0, 0, 0, 0], atol=2e-6)
    check_orthonormal(result, 1e-5)


def test_nan_stays_in_its_matrix(every_isa: str) -> None:
    A = torch.randn(3, 30, 20)
    clean = sk.rsvd(A, 5, generator=generator())
    A[1, 4, 4] = float("nan")
    for x, y in zip(sk.rsvd(A, 5, generator=generator()), clean, strict=True):
        assert x[1].isnan().all()
        assert torch.equal(x[[0, 2]], y[[0, 2]])
    A[1, 4, 4] = float("inf")
    assert sk.rsvd(A, 5).S[1].isnan().all()


def test_same_generator_same_bits(every_isa: str) -> None:
    A = [torch.randn(64, 48), torch.randn(4, 10, 90)]
    first = sk.rsvd(A, 6, generator=generator(7))
    second = sk.rsvd(A, 6, generator=generator(7))
    other = sk.rsvd(A, 6, generator=generator(8))
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(first[0].S, other[0].S)


def test_a_generator_leaves_the_global_one_alone(backend: str) -> None:
    before = torch.get_rng_state()
    sk.rsvd(np.eye(20), 3, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_warm_start_beats_a_cold_one(backend: str) -> None:
    A = torch.from_numpy(low_rank_with_noise(200, 120, 10, 0.7))
    drifted = A + 1e-3 * torch.randn(A.shape, dtype=A.dtype)
    earlier = sk.svd(A)
    earlier = sk.SVD(earlier.U[:, :10], earlier.S[:10], earlier.Vh[:10])
    true = svdvals(drifted.numpy())[:10]
    options = {"power_iters": 0, "generator": generator()}
    cold = sk.rsvd(drifted, 10, **options).S.numpy()
    for start in (earlier, earlier.Vh.mT):
        warm = sk.rsvd(drifted, 10, start=start, **options).S.numpy()
        assert np.abs(warm - true).max() < 1e-4 < 0.05 < np.abs(cold - true).max()
    listed = sk.rsvd([drifted, drifted], 10, start=[earlier, None], **options)
    np.testing.assert_allclose(listed[0].S.numpy(), true, atol=1e-4)


def test_list_function_equals_the_public_one(backend: str) -> None:
    A = [torch.randn(50, 40), torch.randn(30, 60)]
    block = torch.randn(40, 3)
    public = sk.rsvd(A, [4, 6], generator=generator(), start=[block, None])
    hot = rsvd_list(A, [4, 6], generator=generator(), start=[block, None])
    for a, b in zip(public, hot, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert rsvd_list([], []) == []
