"""SpectrumTracker of U Sigma Vh: the same numbers from its factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.entry.core import cores
from spectral_kernels.entry.results import SVD, Decomposed
from tests.support.factored_matrices import gaussian, reference_values, whole


def walk(m: int, n: int, k: int, steps: int, batch=(), dtype=torch.float32):
    """Yield factors that move a little each time, as training moves them."""
    x = Decomposed(*(part / math.sqrt(part.shape[-1]) for part in gaussian(m, n, k, batch, dtype)))
    for step in range(steps):
        yield x
        move = gaussian(m, n, k, batch, dtype, seed=step + 1)
        x = Decomposed(*(a + 1e-3 * b for a, b in zip(x, move, strict=True)))


@pytest.mark.parametrize("reuse", [False, True], ids=["copies", "reused"])
@pytest.mark.parametrize("k", [None, 3], ids=["whole", "leading"])
def test_tracker(k, reuse: bool, backend) -> None:
    """Single, in a list with a matrix, batched; bounds hold and vectors are those of the whole."""
    tracker = sk.SpectrumTracker(k, reuse_buffers=reuse)
    dense = torch.randn(10, 8)
    for x, y in zip(walk(30, 20, 6, 8), walk(12, 14, 5, 8, (2,)), strict=True):
        dense += 1e-3 * torch.randn(10, 8)
        found = tracker.update([x, dense, y])
        bounds, norms = tracker.bounds, tracker.error_norms
        assert [part.shape for part in found[0]] == [(30, k or 6), (k or 6,), (k or 6, 20)]
        for i, z in ((0, x), (2, y)):
            want = torch.from_numpy(reference_values(z).astype(np.float64))
            t = found[i].S.shape[-1]
            error = (found[i].S.double() - want[..., :t]).abs()
            assert (error <= bounds[i]).all()
            assert (error.norm(dim=-1) <= norms[i]).all()
            (core,) = cores([z], vectors=False)
            assert (bounds[i] >= core.error.unsqueeze(-1)).all()
            U, S, Vh = (part.double() for part in found[i])
            left = (whole(z) @ Vh.mT - U * S.unsqueeze(-2)).norm(dim=-2)
            if k is None:
                assert (left <= 1e-2 * S[..., :1]).all()
            else:
                assert (left <= tracker.residuals[i] + 1e-6 * S[..., :1]).all()
        torch.testing.assert_close(found[1].S, sk.svdvals(dense)[:k], rtol=0, atol=1e-2)
    assert set(tracker.work) <= {
        "kept", "rotated", "rotated twice", "rotated three times", "one iteration",
        "two iterations", "three iterations",
    }  # fmt: skip
    assert tracker.resolves == 0


def test_tracker_of_a_single_one_and_of_numpy() -> None:
    tracker = sk.SpectrumTracker()
    for x in walk(9, 7, 4, 3):
        found = tracker.update(Decomposed(*(part.numpy() for part in x)))
        assert isinstance(found, SVD)
        assert isinstance(found.U, np.ndarray)
        assert isinstance(tracker.bounds, np.ndarray)
        np.testing.assert_allclose(found.S, reference_values(x), atol=1e-2)


def test_tracker_keeps_signs_and_hands_out_the_same_memory() -> None:
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    first, *others = walk(30, 20, 6, 5)
    before = tracker.update(first).U
    place, old = before.data_ptr(), before.clone()
    for x in others:
        found = tracker.update(Decomposed(*(part.requires_grad_() for part in x)))
        assert not found.U.requires_grad
        assert found.U.data_ptr() == place
        assert ((found.U * old).sum(dim=0) > 0.9).all()
        old = found.U.clone()


@pytest.mark.parametrize("k", [None, 3], ids=["whole", "leading"])
def test_tracker_state(k, backend) -> None:
    steps = list(walk(30, 20, 6, 6))
    A = torch.randn(8, 8)
    first = sk.SpectrumTracker(k)
    for x in steps[:3]:
        first.update([A, x])
    state = first.state_dict()
    assert state["shapes"] == [(8, 8), (30, 20)]
    assert state["ranks"] == [None, 6]
    second = sk.SpectrumTracker(k)
    second.load_state_dict(state)
    for x in steps[3:]:
        for a, b in zip(first.update([A, x]), second.update([A, x]), strict=True):
            for p, q in zip(a, b, strict=True):
                assert p.equal(q)
    assert second.resolves == 0


@pytest.mark.parametrize("k", [None, 2])
def test_tracker_takes_another_dtype(k: int | None) -> None:
    tracker = sk.SpectrumTracker(k, reuse_buffers=True)
    for dtype in (torch.float32, torch.float64, torch.float32):
        factors = torch.randn(7, 3), torch.randn(3, 3), torch.randn(3, 5)
        found = tracker.update(Decomposed(*(x.to(dtype) for x in factors)))
        assert all(x.dtype == dtype for x in found)
        truth = torch.linalg.svdvals(torch.linalg.multi_dot([x.double() for x in factors]))
        assert ((found.S - truth[: len(found.S)]).abs() <= tracker.bounds).all()


@pytest.mark.parametrize("k", [None, 2])
def test_tracker_takes_a_state_from_before_decomposed_matrices(k: int | None) -> None:
    tracker = sk.SpectrumTracker(k)
    tracker.update([torch.eye(3), torch.eye(4)])
    state = tracker.state_dict()
    del state["ranks"]
    other = sk.SpectrumTracker(k)
    other.load_state_dict(state)
    assert other.state_dict()["ranks"] == [None, None]
    other.update([torch.eye(3), torch.eye(4)])
    assert (other.resolves, other.work == tracker.work) == (0, False)
    fresh = sk.SpectrumTracker(k).state_dict()
    del fresh["ranks"]
    other.load_state_dict(fresh)


def test_tracker_refuses_another_rank() -> None:
    tracker = sk.SpectrumTracker()
    tracker.update([gaussian(9, 7, 4)])
    with pytest.raises(
        ValueError, match=r"A\[0\] has shape \(9, 7\) of rank 3 and had \(9, 7\) of"
    ):
        tracker.update([gaussian(9, 7, 3)])
    with pytest.raises(ValueError, match=r"A\[0\] has shape \(9, 7\) and had \(9, 7\) of rank 4"):
        tracker.update([torch.randn(9, 7)])
    tracker.reset()
    assert tracker.update([gaussian(9, 7, 3)])[0].S.shape == (3,)


def test_tracker_goes_on_after_nan() -> None:
    tracker = sk.SpectrumTracker()
    steps = list(walk(9, 7, 4, 3))
    tracker.update(steps[0])
    steps[1].U[0, 0] = math.nan
    assert tracker.update(steps[1]).S.isnan().all()
    assert tracker.bounds.isnan().all()
    assert tracker.work == ["not finite"]
    tracker.update(steps[2])
    assert tracker.bounds.isfinite().all()
    assert tracker.resolves == 0
