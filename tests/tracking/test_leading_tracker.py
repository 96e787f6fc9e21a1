"""SpectrumTracker(k): what it carries from update to update, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from tests.support import matrices
from tests.support.leading_checks import ITERATIONS, K, check, steep
from tests.support.trajectories import brownian, crossing


def test_identities_and_signs_through_a_crossing(every_isa: str) -> None:
    tracker = sk.SpectrumTracker(8)
    before: sk.SVD | None = None
    numbers: list[int] = []
    for step in crossing():
        now = tracker.update(step.float())
        assert isinstance(now, sk.SVD)
        order = tracker.identities.tolist()
        if before is None:
            assert order == list(range(8))
            numbers = order
        else:
            overlap = before.Vh @ now.Vh.T
            for new, number in enumerate(order):
                old = numbers.index(number)
                assert float(overlap[old, new]) > 0.7
        before, numbers = now, order
    assert numbers == [0, 1, 2, 4, 3, 5, 6, 7]


def test_a_vector_that_is_new_gets_a_new_number(every_isa: str) -> None:
    tracker = sk.SpectrumTracker(3)
    tracker.update(torch.diag(torch.arange(40.0, 0.0, -1.0)))
    tracker.update(torch.diag(torch.arange(1.0, 41.0)))
    assert tracker.identities.min() >= 3
    assert len(set(tracker.identities.tolist())) == 3


def test_a_zero_matrix_leaves_the_state(every_isa: str) -> None:
    A = steep(30, 40, 1.0)
    tracker = sk.SpectrumTracker(K)
    # Before the first vectors, and after.
    for _ in range(2):
        result = tracker.update(0 * A)
        check(0 * A, result, tracker)
        assert (result.S == 0).all()
        assert tracker.identities.tolist() == list(range(K))
    check(A, tracker.update(A), tracker)
    assert tracker.work == ["solved"]
    check(0 * A, tracker.update(0 * A), tracker)
    check(A, tracker.update(A), tracker)
    assert tracker.work != ["solved"]
    assert tracker.identities.tolist() == list(range(K))


def test_nan_stays_in_its_matrix(every_isa: str) -> None:
    A = torch.stack([steep(30, 20, 1.0, seed) for seed in range(3)])
    tracker = sk.SpectrumTracker(K)
    tracker.update(A)
    bad = A.clone()
    bad[1, 2, 3] = float("inf")
    result = tracker.update(bad)
    assert tracker.work[1] == "not finite"
    told = (*result, tracker.bounds, tracker.residuals, tracker.frobenius_norms)
    assert all(bool(x[1].isnan().all()) for x in told)
    assert all(bool(x[[0, 2]].isfinite().all()) for x in told)
    tracker.update(A)
    assert tracker.work[1] in ITERATIONS
    assert tracker.identities[1].tolist() == list(range(K))


@pytest.mark.parametrize("shape", [(70, 90), (90, 33)])
def test_state_goes_on_bit_by_bit(shape: tuple[int, int], every_isa: str) -> None:
    steps = [[A.float(), A[:, :9].float()] for A in brownian(*shape, 5e-3, steps=12)()]
    first = sk.SpectrumTracker(K)
    for A in steps[:5]:
        first.update(A)
    state = first.state_dict()
    kept = [V.clone() for V in state["vectors"]]
    second = sk.SpectrumTracker(K)
    second.load_state_dict(state)
    torch.manual_seed(123)  # the global generator has no part in it
    for A in steps[5:]:
        for a, b in zip(first.update(A), second.update(A), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for name in ("bounds", "error_norms", "residuals", "frobenius_norms", "identities"):
            pairs = zip(getattr(first, name), getattr(second, name), strict=True)
            assert all(torch.equal(x, y) for x, y in pairs)
        assert (first.work, first.resolves) == (second.work, second.resolves)
    assert all(torch.equal(x, y) for x, y in zip(kept, state["vectors"], strict=True))


def test_lists_batches_and_empties(every_isa: str) -> None:
    """Every matrix is tracked as if it were alone."""
    torch.manual_seed(3)
    shapes: list[tuple[int, ...]] = [(2, 3, 8, 6), (5, 9), (0, 4), (40, 33), (0, 3, 3)]
    together = sk.SpectrumTracker(4)
    alone = {(j, i): sk.SpectrumTracker(4) for j in (0, 1) for i in range(3)}
    tensors = [torch.randn(s) for s in shapes]
    for _ in range(5):
        results = together.update(tensors)
        assert isinstance(results, list)
        for A, (U, S, Vh), b in zip(tensors, results, together.bounds, strict=True):
            *batch, m, n = A.shape
            k = min(4, m, n)
            assert (U.shape, S.shape) == ((*batch, m, k), (*batch, k))
            assert (Vh.shape, b.shape) == ((*batch, k, n), (*batch, k))
            assert U.mT.is_contiguous()
        assert together.error_norms[0].shape == (2, 3)
        for (j, i), tracker in alone.items():
            expected = tracker.update(tensors[0][j, i])
            got = (x[j, i] for x in results[0])
            assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
            assert torch.equal(together.identities[0][j, i], tracker.identities)
        tensors = [A + 1e-3 * torch.randn(A.shape) for A in tensors]


@pytest.mark.parametrize("way", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_another_dtype_on_the_way(way: tuple[torch.dtype, torch.dtype], every_isa: str) -> None:
    """Kernels write vectors of the type of the matrices, whatever the block before was of."""
    A = torch.from_numpy(matrices.gaussian(40, 29))
    tracker = sk.SpectrumTracker(K)
    for dtype in (*way, *way):
        found = tracker.update(A.to(dtype))
        assert tracker.state_dict()["vectors"][0].dtype == found.S.dtype == dtype
        truth = np.linalg.svd(A.to(dtype).double().numpy())[1][:K]
        assert (np.abs(found.S.double().numpy() - truth) <= tracker.bounds.numpy()).all()
    other = sk.SpectrumTracker(K)
    other.load_state_dict(tracker.state_dict())
    other.update(A.to(way[0]))
    assert other.state_dict()["vectors"][0].dtype == way[0]


def test_layouts_and_dtypes(every_isa: str) -> None:
    base = torch.from_numpy(matrices.gaussian(40, 29)).float()
    for A in matrices.layouts(base).values():
        tracker = sk.SpectrumTracker(K)
        for _ in range(2):
            check(base, tracker.update(A), tracker)
    for dtype in (torch.float16, torch.bfloat16):
        tracker = sk.SpectrumTracker(K)
        for _ in range(2):
            result = tracker.update(base.to(dtype))
            assert result.U.dtype == torch.float32
            check(base.to(dtype), result, tracker)


def test_a_wide_range_of_widths(every_isa: str) -> None:
    """k beyond one vector, and blocks wider than a slice of the products."""
    A = steep(150, 140, 0.5)
    for k in (1, 8, 9, 41, 100, 130):
        tracker = sk.SpectrumTracker(k)
        for _ in range(4):
            check(A, tracker.update(A), tracker, k)


def scaled() -> Iterator[float]:
    yield from (1e-41, 1e-30, 1e-13, 1.0, 1e13, 1e30, 1e-20, 1.0)


def test_scales_that_change(every_isa: str) -> None:
    """The same vectors at any scale: nothing to do but to read."""
    A = steep(50, 40, 2.0)
    tracker = sk.SpectrumTracker(K)
    tracker.update(A)
    for factor in scaled():
        check(factor * A, tracker.update(factor * A), tracker)
        assert tracker.work[0] in ITERATIONS


def test_numpy_in_numpy_out(backend: str) -> None:
    A = matrices.gaussian(30, 26)
    tracker, like = sk.SpectrumTracker(K), sk.SpectrumTracker(K)
    result, expected = tracker.update(A), like.update(torch.from_numpy(A))
    told = (tracker.bounds, tracker.error_norms, tracker.residuals, tracker.frobenius_norms)
    assert isinstance(tracker.identities, np.ndarray)
    assert all(isinstance(x, np.ndarray) for x in (*result, *told))
    assert all(np.array_equal(x, y.numpy()) for x, y in zip(result, expected, strict=True))


def test_reset_and_fresh_states(backend: str) -> None:
    tracker = sk.SpectrumTracker(K)
    assert (tracker.bounds, tracker.identities, tracker.work) == (None, None, [])
    tracker.load_state_dict(sk.SpectrumTracker(K).state_dict())
    first = tracker.update(torch.eye(20, 30))
    tracker.reset()
    assert (tracker.bounds, tracker.residuals, tracker.resolves) == (None, None, 0)
    again = tracker.update(torch.eye(20, 30))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert sk.SpectrumTracker(2).update([]) == []


def test_errors(backend: str) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"k is {wrong}; expected at least 1"):
            sk.SpectrumTracker(wrong)
    with pytest.raises(TypeError, match=r"k is 2\.5; expected an integer"):
        sk.SpectrumTracker(2.5)  # type: ignore[arg-type]
    tracker = sk.SpectrumTracker(2)
    tracker.update([torch.eye(30), torch.eye(20)])
    with pytest.raises(ValueError, match=r"A\[1\] has shape \(4, 5\) and had \(20, 20\).*reset"):
        tracker.update([torch.eye(30), torch.ones(4, 5)])
    state: dict[str, Any] = tracker.state_dict()
    with pytest.raises(ValueError, match="expected those of state_dict"):
        tracker.load_state_dict({"vectors": []})
    with pytest.raises(ValueError, match="state is of k = 2; expected k = 3"):
        sk.SpectrumTracker(3).load_state_dict(state)
    with pytest.raises(ValueError, match=r"vectors\[1\] has shape \(1, 30, 16\).*\(1, 20, 16\)"):
        tracker.load_state_dict({**state, "vectors": [state["vectors"][0]] * 2})
    bad = [V + float("nan") for V in state["vectors"]]
    with pytest.raises(ValueError, match=r"vectors\[0\] holds NaN or Inf"):
        tracker.load_state_dict({**state, "vectors": bad})
    with pytest.raises(ValueError, match="expected those of state_dict"):
        sk.SpectrumTracker().load_state_dict(state)
