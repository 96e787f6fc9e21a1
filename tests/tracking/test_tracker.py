"""SpectrumTracker: what it carries from update to update, and what it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from tests.support import matrices
from tests.support.tracked import check
from tests.support.trajectories import brownian


def test_signs_are_carried_on(every_isa: str) -> None:
    sigma = np.linspace(20.0, 1.0, 20)
    A = matrices.with_spectrum(30, 20, sigma)
    tracker = sk.SpectrumTracker(tolerance=1e-4)
    before = tracker.update(torch.from_numpy(A).float())
    torch.testing.assert_close(before.U, sk.svd(torch.from_numpy(A).float()).U, atol=1e-5, rtol=0)
    work = set()
    for i in range(60):
        A = A + 0.01 * matrices.gaussian(30, 20, i + 5)
        now = tracker.update(torch.from_numpy(A).float())
        assert ((before.U * now.U).sum(dim=0) > 0.9).all()
        assert ((before.Vh * now.Vh).sum(dim=1) > 0.9).all()
        work |= set(tracker.work)
        before = now
    assert work & {"rotated", "rotated twice"}


def test_signs_outlive_a_new_solution(every_isa: str) -> None:
    """A step too long for rotations, short enough for every vector to be recognised."""
    A = torch.from_numpy(matrices.with_spectrum(30, 8, np.linspace(20.0, 6.0, 8))).float()
    B = torch.from_numpy(matrices.gaussian(30, 8)).float()
    for flip in (1.0, -1.0):
        tracker = sk.SpectrumTracker(tolerance=1e-9)
        before = tracker.update(flip * A)
        now = tracker.update(flip * (A + 0.05 * B))
        assert ((before.U * now.U).sum(dim=0) > 0.9).all()
        assert ((before.Vh * now.Vh).sum(dim=1) > 0.9).all()


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_state_goes_on_bit_by_bit(shape: tuple[int, int], every_isa: str) -> None:
    steps = [[A.float(), A[:, :5].float()] for A in brownian(*shape, 5e-3, steps=10)()]
    first = sk.SpectrumTracker()
    for A in steps[:5]:
        first.update(A)
    state = first.state_dict()
    kept = [V.clone() for V in state["vectors"]]
    second = sk.SpectrumTracker()
    second.load_state_dict(state)
    for A in steps[5:]:
        for a, b in zip(first.update(A), second.update(A), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert all(torch.equal(x, y) for x, y in zip(first.bounds, second.bounds, strict=True))
        assert (first.work, first.resolves) == (second.work, second.resolves)
    # Updates leave the dictionary alone.
    assert all(torch.equal(x, y) for x, y in zip(kept, state["vectors"], strict=True))


def test_a_fresh_state_loads(backend: str) -> None:
    tracker = sk.SpectrumTracker()
    tracker.load_state_dict(sk.SpectrumTracker().state_dict())
    tracker.update(torch.eye(3))
    assert tracker.work == ["solved"]


def test_lists_batches_and_empties(every_isa: str) -> None:
    """Every matrix is tracked as if it were alone."""
    torch.manual_seed(3)
    shapes: list[tuple[int, ...]] = [(2, 3, 8, 6), (5, 9), (0, 4), (40, 33), (0, 3, 3)]
    together = sk.SpectrumTracker()
    alone = {(j, i): sk.SpectrumTracker() for j in (0, 1) for i in range(3)}
    tensors = [torch.randn(s) for s in shapes]
    for _ in range(4):
        results = together.update(tensors)
        assert isinstance(results, list)
        bounds = together.bounds
        for A, (U, S, Vh), b in zip(tensors, results, bounds, strict=True):
            *batch, m, n = A.shape
            r = min(m, n)
            assert (U.shape, S.shape) == ((*batch, m, r), (*batch, r))
            assert (Vh.shape, b.shape) == ((*batch, r, n), (*batch, r))
            assert U.mT.is_contiguous()
        work = []
        for (j, i), tracker in alone.items():
            expected = tracker.update(tensors[0][j, i])
            got = (x[j, i] for x in results[0])
            assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
            assert torch.equal(bounds[0][j, i], tracker.bounds)
            work += tracker.work
        assert together.work[:6] == work
        assert len(together.work) == 9
        tensors = [A + 1e-3 * torch.randn(A.shape) for A in tensors]
    assert together.resolves == sum(t.resolves for t in alone.values())


def test_nan_stays_in_its_matrix(every_isa: str) -> None:
    A = torch.randn(3, 10, 7)
    clean, dirty = sk.SpectrumTracker(), sk.SpectrumTracker()
    for x in (A, A + 1e-3):
        clean.update(x)
    dirty.update(A)
    bad = A + 1e-3
    bad[1, 2, 3] = float("inf")
    got = dirty.update(bad)
    assert dirty.work[1] == "not finite"
    assert all(bool(x[1].isnan().all()) for x in (*got, dirty.bounds))
    assert all(bool(x[[0, 2]].isfinite().all()) for x in (*got, dirty.bounds))
    # The state of the bad one is that of the step before.
    dirty.update(A)
    assert dirty.work[1] == "kept"
    assert dirty.resolves == clean.resolves


def test_layouts(every_isa: str) -> None:
    base = torch.from_numpy(matrices.gaussian(20, 13)).float()
    for A in matrices.layouts(base).values():
        tracker = sk.SpectrumTracker()
        for _ in range(2):
            check(base, tracker.update(A), tracker)


def test_numpy_in_numpy_out(backend: str) -> None:
    A = matrices.gaussian(9, 6)
    tracker, like = sk.SpectrumTracker(), sk.SpectrumTracker()
    result, expected = tracker.update(A), like.update(torch.from_numpy(A))
    assert all(isinstance(x, np.ndarray) for x in (*result, tracker.bounds))
    assert all(np.array_equal(x, y.numpy()) for x, y in zip(result, expected, strict=True))
    several = sk.SpectrumTracker()
    mixed: Any = several.update([A, torch.from_numpy(A).float()])
    assert isinstance(mixed[0].S, np.ndarray)
    assert isinstance(mixed[1].S, torch.Tensor)
    assert isinstance(several.bounds[0], np.ndarray)


def test_results_carry_no_gradient(backend: str) -> None:
    A = torch.randn(5, 4, requires_grad=True)
    tracker = sk.SpectrumTracker()
    for _ in range(2):
        assert not any(x.requires_grad for x in (*tracker.update(A), tracker.bounds))


def test_reset(backend: str) -> None:
    tracker = sk.SpectrumTracker()
    assert tracker.bounds is None
    assert tracker.work == []
    for A in (torch.randn(6, 5), torch.randn(6, 5)):
        tracker.update(A)
    assert tracker.resolves == 1
    tracker.reset()
    assert (tracker.bounds, tracker.work, tracker.resolves) == (None, [], 0)
    tracker.update(torch.randn(3, 9))
    assert (tracker.work, tracker.resolves) == (["solved"], 0)
    assert sk.SpectrumTracker().update([]) == []


def test_buffers_are_reused(backend: str) -> None:
    """The same numbers, in the same place."""
    A = [torch.randn(2, 9, 6), torch.randn(5, 8), torch.zeros(0, 3)]
    fresh, reusing = sk.SpectrumTracker(), sk.SpectrumTracker(reuse_buffers=True)
    places = set()
    for step in range(6):
        expected: Any = fresh.update([a.clone() for a in A])
        found: Any = reusing.update(A)
        for a, b in zip(expected, found, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert all(torch.equal(x, y) for x, y in zip(fresh.bounds, reusing.bounds, strict=True))
        assert (fresh.work, fresh.resolves) == (reusing.work, reusing.resolves)
        places.add(found[1].S.data_ptr())
        if step == 3:
            # Replaced parameters: new memory, another layout.
            A = [a.mT.contiguous().mT for a in A]
        for a in A:
            a += (0.02 if step == 1 else 1e-3) * torch.randn_like(a)
    assert len(places) <= 2 or backend == "torch"
    with pytest.raises(ValueError, match="had"):
        reusing.update([A[0], A[1].mT, A[2]])


def test_errors(backend: str) -> None:
    for wrong in (0.0, -1e-3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a positive finite number"):
            sk.SpectrumTracker(tolerance=wrong)
    with pytest.raises(TypeError, match="expected a number"):
        sk.SpectrumTracker(tolerance="1e-3")  # type: ignore[arg-type]
    tracker = sk.SpectrumTracker()
    with pytest.raises(ValueError, match="at least two dimensions"):
        tracker.update(torch.ones(3))
    with pytest.raises(TypeError, match="int64"):
        tracker.update(torch.ones(3, 3, dtype=torch.int64))
    tracker.update([torch.eye(3), torch.eye(4)])
    state = tracker.state_dict()
    with pytest.raises(ValueError, match=r"A\[1\] has shape \(4, 5\) and had \(4, 4\).*reset"):
        tracker.update([torch.eye(3), torch.ones(4, 5)])
    with pytest.raises(ValueError, match=r"A has 1 matrices and had 2.*reset"):
        tracker.update(torch.eye(3))
    # A refused update changes nothing.
    assert tracker.work == ["solved", "solved"]
    tracker.update([torch.eye(3), torch.eye(4)])
    assert tracker.work == ["kept", "kept"]
    with pytest.raises(ValueError, match="expected those of state_dict"):
        tracker.load_state_dict({"vectors": []})
    with pytest.raises(ValueError, match=r"vectors\[1\].*\(1, 3, 3\).*\(1, 4, 4\)"):
        tracker.load_state_dict({**state, "vectors": [state["vectors"][0]] * 2})


def test_work_as_numbers(backend: str) -> None:
    """Codes and lost flags have the batch dimensions of A and say what ``work`` says."""
    tracker = sk.SpectrumTracker()
    assert tracker.codes is None
    assert tracker.lost is None
    A = [torch.randn(2, 3, 8, 6), torch.randn(5, 9), torch.zeros(0, 4, 4)]
    A[0][1, 2, 0, 0] = float("nan")
    for expected in (4, 0):
        tracker.update(A)
        codes: Any = tracker.codes
        lost: Any = tracker.lost
        assert [tuple(x.shape) for x in codes] == [(2, 3), (), (0,)]
        assert codes[0].tolist() == [[expected] * 3, [expected, expected, -1]]
        assert codes[1].dtype == torch.int64
        assert int(codes[1]) == expected
        assert [tuple(x.shape) for x in lost] == [(2, 3), (), (0,)]
        assert not any(bool(x.any()) for x in lost)
    for which, message in (
        ([[0], []], "which has 2 entries; expected 3"),
        ([[0], [1], []], r"which\[1\] has the index 1; expected 0 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tracker.resolve(which)
    # Updates that wait for their bounds have solved what they lost.
    before = tracker.resolves
    tracker.resolve([[0, 5], [0], []])
    tracker.update(A)
    assert tracker.work[:6] == ["kept"] * 5 + ["not finite"]
    assert tracker.resolves == before
    numpy = sk.SpectrumTracker()
    numpy.update(matrices.gaussian(4, 3))
    assert isinstance(numpy.codes, np.ndarray)


def test_codes_mean_the_same_with_and_without_k(backend: str) -> None:
    A = torch.randn(2, 40, 30)
    A[1, 0, 0] = float("inf")
    for k in (None, 4):
        tracker = sk.SpectrumTracker(k)
        tracker.update(A)
        assert tracker.codes.tolist() == [4, -1]
        assert tracker.work == ["solved", "not finite"]
        tracker.update(A + 1e-4 * torch.randn(40, 30))
        turns, nothing = tracker.codes.tolist()
        assert nothing == -1
        assert 0 <= turns <= 3
        words = ("kept", "rotated", "rotated twice", "rotated three times")
        iterations = ("", "one iteration", "two iterations", "three iterations")
        assert tracker.work[0] == (words if k is None else iterations)[turns]
