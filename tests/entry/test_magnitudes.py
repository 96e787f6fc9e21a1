"""Any finite input works: magnitudes over the whole range of a type, where norms overflow too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.svd import truth
from tests.support import matrices

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = {"small": (16, 12), "lanes": (24, 60), "gram": (64, 48)}


def exponents(dtype: torch.dtype) -> list[int]:
    """From the smallest numbers of a type to its largest."""
    info = torch.finfo(dtype)
    low = round(math.log2(info.smallest_normal * info.eps)) + 4
    high = int(np.frexp(info.max)[1]) - 1
    return [low, low // 2, 0, high // 2, high - 8, high - 2, high]


def of_magnitude(A: np.ndarray, exponent: int, dtype: torch.dtype) -> torch.Tensor:
    """Return A (max|a| = 1/2) times 2**(exponent + 1), in the dtype."""
    return torch.from_numpy(np.ldexp(A, exponent + 1)).to(dtype)


def spectrum(A: torch.Tensor) -> tuple[np.ndarray, int]:
    """Return the values of A over a power of two, and its exponent."""
    wide = A.double().numpy()
    exponent = int(np.frexp(np.abs(wide).max())[1])
    half = exponent // 2
    return truth.svdvals(np.ldexp(np.ldexp(wide, -half), half - exponent)), exponent


def cases() -> list[tuple[str, torch.dtype, int]]:
    return [(name, dtype, e) for name in SHAPES for dtype in TYPES for e in exponents(dtype)]


def matrix(name: str, exponent: int, dtype: torch.dtype) -> torch.Tensor:
    A = matrices.gaussian(*SHAPES[name])
    return of_magnitude(0.5 * A / np.abs(A).max(), exponent, dtype)


def close(found: torch.Tensor, true: np.ndarray, exponent: int, tolerance: float) -> None:
    """Infinite where the truth is beyond the type, else near it; never NaN."""
    info = torch.finfo(found.dtype)
    with np.errstate(over="ignore"):
        expected = np.ldexp(np.asarray(true, dtype=np.longdouble), exponent)
    got = found.double().numpy().astype(np.longdouble)
    # Rounded to multiples of the smallest number, twice; a norm has the errors of all values.
    least = info.smallest_normal * info.eps
    allowed = tolerance * np.max(expected) + (2 if len(expected) > 1 else 24) * least
    beyond = expected > info.max
    assert not np.isnan(got).any()
    assert np.isinf(got[beyond]).all()
    assert (np.abs(got - expected)[~beyond] <= allowed).all()


@pytest.mark.parametrize(("name", "dtype", "exponent"), cases(), ids=str)
def test_values_ranks_and_norms(name: str, dtype: torch.dtype, exponent: int, backend: str) -> None:
    A = matrix(name, exponent, dtype)
    sigma, e = spectrum(A)
    wide = dtype == torch.float64
    tolerance = 1e-13 if wide else 2e-6
    svd = sk.svd(A)
    for S in (svd.S, sk.svdvals(A)):
        close(S, sigma, e, tolerance)
    assert torch.isfinite(svd.U).all()
    assert torch.isfinite(svd.Vh).all()
    found = sk.spectral_summary(A)
    norms = (sigma[0], sigma.sum(), np.linalg.norm(sigma))
    for norm, true in zip(found[5:], norms, strict=True):
        close(norm[None], np.array([true]), e, tolerance * len(sigma))
    least = torch.finfo(found.effective_rank.dtype).smallest_normal
    # Values near the smallest numbers have few digits, and their ranks no more.
    digits = min(1.0, 1e-3 + float(least / (np.ldexp(np.longdouble(sigma[-1]), e) + least)))
    p = sigma / sigma.sum()
    ranks = (-(p * np.log(p)).sum(), (sigma**2).sum() / sigma[0] ** 2)
    for rank, true in zip((found.effective_rank, found.stable_rank), ranks, strict=True):
        assert math.isfinite(rank)
        assert digits > 0.5 or abs(float(rank) - true) <= digits * true
    assert float(sk.effective_rank(A)) == float(found.effective_rank)
    assert float(sk.stable_rank(A)) == float(found.stable_rank)
    assert float(sk.numerical_rank(A)) == float(found.numerical_rank)
    if digits < 1e-2:
        assert float(found.numerical_rank) == len(sigma)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize(("name", "dtype", "exponent"), cases(), ids=str)
def test_trackers(
    name: str, dtype: torch.dtype, exponent: int, k: int | None, backend: str
) -> None:
    A = matrix(name, exponent, dtype)
    sigma, e = spectrum(A)
    tracker = sk.SpectrumTracker(k)
    for _ in range(3):
        found = tracker.update(A)
        if k is None:
            close(found.S, sigma, e, 1e-3)
        assert not torch.isnan(found.S).any()
        assert torch.isfinite(found.U).all()
        assert torch.isfinite(found.Vh).all()
        assert tracker.bounds is not None
        assert not torch.isnan(tracker.bounds).any()
        assert not torch.isnan(tracker.error_norms).any()
        assert not torch.isnan(sk.bounds_from_residuals(A, *found)).any()
    if k is None:
        bounds = sk.bounds_from_value_bounds(found.S, tracker.bounds)
        assert not any(torch.isnan(x).any() for x in bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds_of_infinite_values_say_nothing(dtype: torch.dtype, backend: str) -> None:
    inf = float("inf")
    S = torch.tensor([[inf, 1.0, 0.5], [2.0, 1.0, 0.5], [inf, float("nan"), 0.5]], dtype=dtype)
    radii = torch.tensor([[inf, 1e-3, 1e-3], [1e-3] * 3, [1e-3] * 3], dtype=torch.float64)
    infinite, finite, none = zip(*sk.bounds_from_value_bounds(S, radii)[1:], strict=True)
    assert set(map(float, infinite)) == {inf}
    assert all(math.isfinite(x) for x in finite)
    assert all(math.isnan(x) for x in none)
    low, high = sk.bounds_from_leading_values(S, S.square().sum(dim=-1).sqrt(), 8)
    # What is true of every matrix with eight values.
    assert low[0] == 0.0
    assert float(high[0]) == pytest.approx(math.log(8), abs=1e-6)
    assert 0.0 < low[1] < high[1] < high[0]
    assert torch.isnan(low[2])
    assert torch.isnan(high[2])


def test_residual_bounds_of_infinite_values_are_infinite() -> None:
    A = torch.from_numpy(np.stack([matrices.gaussian(8, 6, i) for i in range(3)])).float()
    U, S, Vh = sk.svd(A)
    S = S.clone()
    S[0, 0] = float("inf")
    A[2, 0, 0] = S[2, 0] = float("inf")
    found = sk.bounds_from_residuals(A, U, S, Vh)
    assert torch.isinf(found[0]).all()
    assert (found[1] < 1e-4).all()
    assert torch.isnan(found[2]).all()


@pytest.mark.parametrize("value", [3e38, 1e37])
@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (3, 40, 30)], ids=str)
def test_ranks_of_values_beyond_float32(value: float, shape: tuple[int, ...], backend: str) -> None:
    A = torch.full(shape, value)
    found = sk.spectral_summary(A)
    assert (found.effective_rank < 1e-4).all()
    torch.testing.assert_close(found.stable_rank, torch.ones(shape[:-2]))
    assert (found.numerical_rank == 1).all()
    overflows = value * math.prod(shape[-2:]) ** 0.5 > torch.finfo(torch.float32).max
    assert (torch.isinf(found.spectral_norm) == overflows).all()


def test_a_batch_where_one_overflows(backend: str) -> None:
    A = torch.from_numpy(np.stack([matrices.gaussian(20, 14, i) for i in range(3)])).float()
    expected = sk.spectral_summary(A)
    B = A.clone()
    B[1] *= 2.0**126 / float(A[1].abs().max())
    B[2] = float("nan")
    found = sk.spectral_summary([B, A])
    torch.testing.assert_close(found[0].effective_rank[:2], expected.effective_rank[:2])
    torch.testing.assert_close(found[0].frobenius_norm[0], expected.frobenius_norm[0])
    assert torch.isnan(found[0].stable_rank[2])
    torch.testing.assert_close(found[1].nuclear_norm, expected.nuclear_norm)


def test_gradients_of_ranks_beyond_the_range(backend: str) -> None:
    A = torch.from_numpy(matrices.gaussian(20, 14)).float()
    A *= 2.0**126 / float(A.abs().max())
    A.requires_grad_()
    sk.effective_rank(A).backward()
    assert A.grad is not None
    assert torch.isfinite(A.grad).all()


@pytest.mark.parametrize("method", ["exact", "tracked", "randomized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("flat", [True, False])
def test_rows_of_a_monitor(method: str, dtype: torch.dtype, flat: bool, backend: str) -> None:
    A = torch.ones(64, 48) if flat else torch.from_numpy(matrices.gaussian(64, 48)).float()
    A = A.to(dtype)
    top = 126 if dtype == torch.float32 else 1022
    rows = []
    for exponent in (0, top):
        model = torch.nn.Linear(48, 64, bias=False, dtype=dtype)
        model.weight.data = A / A.abs().max() * 2.0**exponent
        k = {"k": 8} if method == "randomized" else {}
        monitor = sk.SpectralMonitor(model, method=method, every=1, **k)
        monitor.step()
        frame = monitor.step()
        assert frame is not None
        rows.append(frame.matrices["weight"])
    small, large = rows
    assert large.finite
    for name in ("effective_rank", "stable_rank", "numerical_rank"):
        allowed = small.bounds[name] + large.bounds[name]
        assert abs(getattr(small, name) - getattr(large, name)) <= allowed
        assert math.isfinite(large.bounds[name])
    for name in ("spectral_norm", "nuclear_norm", "frobenius_norm"):
        assert not math.isnan(getattr(large, name) + large.bounds[name])
