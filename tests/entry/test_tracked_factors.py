"""SpectrumTracker of U Sigma Vh: the same numbers from its factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.entry import factors
from spectral_kernels.entry.core.op import cores, lift
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


@pytest.mark.parametrize("k", [None, 5], ids=["whole", "leading"])
@pytest.mark.parametrize("reuse", [False, True], ids=["copies", "reused"])
def test_tracker_lifts_what_is_asked_for(k, reuse: bool, monkeypatch) -> None:
    """Vectors are those of an update that lifts all; of none, there is no basis either."""
    all_of_them, few = (sk.SpectrumTracker(k, reuse_buffers=reuse) for _ in range(2))
    bases = []
    monkeypatch.setattr(
        factors, "lift", lambda core, *rest: (bases.append(core), lift(core, *rest))[1]
    )
    dense = torch.randn(10, 8)
    for step, (x, y) in enumerate(zip(walk(30, 20, 6, 6), walk(12, 14, 5, 6), strict=True)):
        expected = all_of_them.update([x, dense, y])
        bases.clear()
        # Counts may change from update to update.
        t = 2 if step < 4 else 3
        found = few.update([x, dense, y], vectors=[t, 0, 0])
        assert [tuple(part.shape) for part in found[2]] == [(12, 0), (5,), (0, 14)]
        assert [core.left.shape for core in bases] == [(30, 6), (12, 0)]
        assert [tuple(part.shape) for part in found[0]] == [(30, t), (k or 6,), (t, 20)]
        # Products of fewer rows are rounded otherwise.
        torch.testing.assert_close(found[0].U, expected[0].U[:, :t], rtol=0, atol=1e-6)
        torch.testing.assert_close(found[0].Vh, expected[0].Vh[:t], rtol=0, atol=1e-6)
        for a, b in zip(found, expected, strict=True):
            assert a.S.equal(b.S)
        for a, b in zip(few.bounds, all_of_them.bounds, strict=True):
            assert a.equal(b)
        assert all(a.equal(b) for a, b in zip(found[1], expected[1], strict=True))
    x = gaussian(9, 7, 4)
    with pytest.raises(ValueError, match="vectors has 1 entries; expected 2, as A has"):
        sk.SpectrumTracker().update([x, x], vectors=[1])


def test_tracker_tells_the_errors_of_cores() -> None:
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    assert tracker.core_errors is None
    for x in walk(30, 20, 6, 4):
        tracker.update([torch.eye(3), x])
        (core,) = cores([x], vectors=True)
        errors = tracker.core_errors
        assert errors[0] == 0.0
        assert errors[1].equal(core.error)
        assert (tracker.bounds[1] >= core.error).all()
    tracker.update([torch.eye(3), Decomposed(*(part * math.nan for part in x))])
    assert tracker.core_errors[1].isnan()


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
