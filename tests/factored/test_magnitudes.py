"""Decomposed matrices of finite factors whose product is beyond the range of its type."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from tests.support import matrices

RANKS = ("effective_rank", "stable_rank", "numerical_rank")


def factors(dtype: torch.dtype, large: bool, seed: int = 0) -> sk.Decomposed:
    """Rank 4, with values of 1 / 4 to 1, all but one beyond the range where ``large``."""
    U, V = matrices.orthonormal(30, 4, seed), matrices.orthonormal(20, 4, seed + 1)
    sigma = np.array([1.0, 0.5, 0.25, 2.0**-70])
    exponent = (64 if dtype == torch.float32 else 512) if large else 0
    parts = (np.ldexp(U, exponent), np.diag(sigma) * 16.0, np.ldexp(V.T, exponent))
    return sk.Decomposed(*(torch.from_numpy(part).to(dtype) for part in parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_vectors_and_ranks(dtype: torch.dtype, backend: str) -> None:
    large, small = factors(dtype, True), factors(dtype, False)
    # In one call with one that fits: what is done to one leaves the other alone.
    (wide, other), (expected, same) = sk.svd([large, small]), sk.svd([small, small])
    assert torch.equal(other.S, same.S)
    assert torch.isinf(wide.S[:3]).all()
    # The last is within the range, to a few eps of the first, 16 * 2^128 or 16 * 2^1024.
    assert 0.0 <= float(wide.S[3]) < (2.0**115 if dtype == torch.float32 else 2.0**982)
    close = {"rtol": 0.0, "atol": 64 * torch.finfo(dtype).eps}
    torch.testing.assert_close(wide.U[:, :3], expected.U[:, :3], **close)
    torch.testing.assert_close(wide.Vh[:3], expected.Vh[:3], **close)
    assert torch.equal(sk.svdvals(large)[:3], wide.S[:3])
    found, truth = sk.spectral_summary(large), sk.spectral_summary(small)
    for name in RANKS:
        torch.testing.assert_close(getattr(found, name), getattr(truth, name), rtol=1e-5, atol=0)
    assert torch.isinf(found.spectral_norm)
    torch.testing.assert_close(sk.effective_rank(large), truth.effective_rank)
    assert torch.isnan(sk.svdvals(large._replace(U=large.U * float("inf")))).all()


def test_a_batch_where_one_overflows(backend: str) -> None:
    both = [factors(torch.float32, large) for large in (True, False)]
    batch = sk.Decomposed(*(torch.stack(parts) for parts in zip(*both, strict=True)))
    found, alone = sk.spectral_summary(batch), sk.spectral_summary(both[1])
    torch.testing.assert_close(found.singular_values[1], alone.singular_values)
    torch.testing.assert_close(found.effective_rank, alone.effective_rank.expand(2))


def test_gradients_of_ranks_beyond_the_range(backend: str) -> None:
    large, small = factors(torch.float64, True), factors(torch.float64, False)
    gradients = []
    for x in (large, small):
        parts = [part.clone().requires_grad_() for part in x]
        sk.effective_rank(sk.Decomposed(*parts)).backward()
        gradients.append(parts[1].grad)
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("k", [None, 3])
def test_trackers_go_through_it(k: int | None, reuse: bool, backend: str) -> None:
    tracker = sk.SpectrumTracker(k, reuse_buffers=reuse)
    for large in (False, True, True, False):
        x = factors(torch.float32, large)
        found = tracker.update(x)
        bounds, norms = tracker.bounds, tracker.error_norms
        assert bounds is not None
        assert not torch.isnan(found.S).any()
        assert not torch.isnan(bounds).any()
        assert torch.isinf(found.S[0]) == large
        assert torch.isinf(bounds[0]) == large
        assert torch.isinf(norms) == large
        assert torch.isfinite(found.U).all()
        if not large:
            truth = torch.tensor([16.0, 8.0, 4.0, 16.0 * 2.0**-70])[: len(found.S)]
            assert (abs(found.S - truth) <= bounds + 1e-4).all()


@pytest.mark.parametrize("method", ["exact", "tracked", "randomized", "leading"])
def test_rows_of_a_monitor(method: str, backend: str) -> None:
    rows = []
    for large in (False, True):
        model = torch.nn.Sequential(sk.DecomposedLinear(20, 30, rank=4, bias=False))
        named = "tracked" if method == "leading" else method
        k = {"k": 2} if method in ("randomized", "leading") else {}
        monitor = sk.SpectralMonitor(model, method=named, every=1, **k)
        steps = []
        for part in (False, large, large):
            with torch.no_grad():
                for name, value in zip(
                    ("U", "Sigma", "Vh"), factors(torch.float32, part), strict=True
                ):
                    getattr(model[0], name).copy_(value)
            frame = monitor.step()
            assert frame is not None
            steps.append(next(iter(frame.matrices.values())))
        rows.append(steps[-1])
    small, wide = rows
    assert wide.finite
    for name in RANKS:
        allowed = small.bounds[name] + wide.bounds[name]
        assert abs(getattr(small, name) - getattr(wide, name)) <= allowed
        assert math.isfinite(wide.bounds[name])
    for name in ("spectral_norm", "nuclear_norm", "frobenius_norm"):
        assert getattr(wide, name) > torch.finfo(torch.float32).max
        assert not math.isnan(wide.bounds[name])
