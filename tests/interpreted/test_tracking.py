"""Updates that wait for nothing: bounds along trajectories, what is lost, and what never moves."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import spectral_kernels as sk
from spectral_kernels.runtime import dispatch
from spectral_kernels.tracking.whole import groups
from tests.support import matrices, tolerances
from tests.support.tracked import check
from tests.support.trajectories import TRAJECTORIES, brownian
from tests.support.waiting import nothing_waits

# Matrices that are too large for an interpreter.
_LEFT_OUT = {"beyond the compiled sizes"}
_FEW = {"collapse", "NaN comes and goes", "1e30", "1e-30", "graded", "wide", "jumps"}


def steps_of(name: str, most: int = 7) -> list[Tensor]:
    """Steps at the beginning of a trajectory, or all over those that change in between."""
    steps = list(TRAJECTORIES[name]())
    apart = {"crossing": 6, "training": 30, "splitting": 2}.get(name, 1)
    return steps[::apart][: 12 if name in _FEW else most]


@pytest.mark.parametrize("name", sorted(set(TRAJECTORIES) - _LEFT_OUT))
def test_the_bound_holds(name: str) -> None:
    tracker = sk.SpectrumTracker(tolerance=tolerances.TRACKER)
    dtypes = (torch.float32, torch.float64) if name in _FEW else (torch.float32,)
    for dtype in dtypes:
        tracker.reset()
        before = False
        for i, step in enumerate(steps_of(name)):
            A = step.to(dtype)
            result: Any = tracker.update(A)
            check(A, result, tracker)
            finite = bool(A.isfinite().all())
            assert (tracker.work == ["not finite"]) == (not finite)
            if finite and (before or i == 0):
                assert tracker.work == ["solved"]
            before = bool(tracker.lost) or (before and not finite)


def test_the_kernels_run() -> None:
    found = dispatch.backend("tracking.whole", "cpu").__name__
    assert found == "spectral_kernels.tracking.whole.triton_backend"


@pytest.mark.parametrize("shape", [(64, 64), (33, 96), (65, 31), (130, 129)])
def test_sides_around_the_tiles(shape: tuple[int, int]) -> None:
    tracker = sk.SpectrumTracker()
    for A in brownian(*shape, 1e-3, steps=3)():
        check(A.float(), tracker.update(A.float()), tracker)


@pytest.mark.parametrize("tolerance", [1e-7, 0.5])
def test_other_tolerances(tolerance: float) -> None:
    tracker = sk.SpectrumTracker(tolerance=tolerance)
    for A in brownian(30, 22, 1e-4, steps=5)():
        check(A.float(), tracker.update(A.float()), tracker)
        assert not bool(tracker.lost)


def test_work_grows_with_the_speed() -> None:
    seen = {}
    for speed in (0.0, 3e-3, 2e-2, 10.0):
        tracker = sk.SpectrumTracker()
        work = []
        for A in brownian(40, 30, speed, steps=6)():
            tracker.update(A.float())
            work += tracker.work
        assert work[0] == "solved"
        assert tracker.resolves == work[1:].count("solved")
        seen[speed] = set(work[1:])
        assert bool(tracker.lost) == (speed == 10.0)
        if speed < 10.0:
            # What turned has stayed turned.
            tracker.update(A.float())
            assert tracker.work == ["kept"]
    assert seen[0.0] == {"kept"}
    assert seen[3e-3] <= {"rotated", "rotated twice"}
    assert "rotated twice" in seen[2e-2]
    # What is lost at one update is solved at the next, and by then it is another matrix.
    assert seen[10.0] == {"rotated three times", "solved"}


def test_half_precision_and_layouts() -> None:
    A = next(brownian(20, 12, 1e-3)())
    for x in (A.half(), *matrices.layouts(A.float()).values()):
        tracker = sk.SpectrumTracker()
        for _ in range(2):
            check(x, tracker.update(x), tracker)
        assert tracker.work == ["kept"]


def test_lists_batches_and_empties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is tracked as if it were alone, in whatever chunks of whatever groups."""
    shapes = [(2, 2, 8, 6), (5, 9), (0, 4), (6, 8), (0, 3, 3), (3, 8, 6)]
    tensors = [torch.randn(s) for s in shapes]
    tensors[5] = tensors[5].double()
    trackers = {}
    for chunk_bytes in (groups._CHUNK_BYTES, 1, 8000):
        monkeypatch.setattr(groups, "_CHUNK_BYTES", chunk_bytes)
        trackers[chunk_bytes] = sk.SpectrumTracker(reuse_buffers=True)
        trackers[chunk_bytes].update(tensors)
    alone = sk.SpectrumTracker()
    alone.update(tensors[0][1, 0])
    for _ in range(1):
        for A in tensors:
            A += 1e-2 * torch.randn_like(A)
        found = []
        for tracker in trackers.values():
            results: Any = tracker.update(tensors)
            told: Any = tracker.bounds, tracker.error_norms, tracker.identities, tracker.codes
            found.append([*results, *told])
            assert len(tracker.work) == 10
        for other in found[1:]:
            for a, b in zip(_flat(found[0]), _flat(other), strict=True):
                # The batch a product is taken in decides the order of its sums.
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        expected: Any = alone.update(tensors[0][1, 0])
        for a, b in zip(found[0][0], expected, strict=True):
            torch.testing.assert_close(a[1, 0], b, rtol=0, atol=1e-6)
        for A, (U, S, Vh), b in zip(tensors, found[0][:6], found[0][6], strict=True):
            *batch, m, n = A.shape
            r = min(m, n)
            assert (U.shape, S.shape) == ((*batch, m, r), (*batch, r))
            assert (Vh.shape, b.shape) == ((*batch, r, n), (*batch, r))
            assert U.mT.is_contiguous()


def _flat(parts: Any) -> list[Tensor]:
    return [x for part in parts for x in ([part] if isinstance(part, Tensor) else _flat(part))]


def test_nan_stays_in_its_matrix() -> None:
    A = torch.randn(3, 10, 7)
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    tracker.update(A)
    for value in (float("inf"), float("nan")):
        bad = A.clone()
        bad[1, 2, 3] = value
        got: Any = tracker.update(bad)
        codes: Any = tracker.codes
        bounds: Any = tracker.bounds
        identities: Any = tracker.identities
        assert codes.tolist() == [0, -1, 0]
        assert tracker.work == ["kept", "not finite", "kept"]
        assert all(bool(x[1].isnan().all()) for x in (*got, bounds))
        assert all(bool(x[[0, 2]].isfinite().all()) for x in (*got, bounds))
        assert identities[1].tolist() == [-1] * 7
    # The state of the bad one is that of the step before.
    tracker.update(A)
    assert tracker.work == ["kept"] * 3
    assert tracker.resolves == 0


def test_one_that_begins_with_nan_is_solved_when_it_can_be() -> None:
    A = torch.randn(2, 6, 5)
    bad = A.clone()
    bad[0, 0, 0] = float("nan")
    tracker = sk.SpectrumTracker()
    tracker.update(bad)
    assert tracker.work == ["not finite", "solved"]
    tracker.update(A)
    lost: Any = tracker.lost
    names: Any = tracker.identities
    assert lost.tolist() == [True, False]
    assert names.tolist() == [[0, 1, 2, 3, 4]] * 2
    found: Any = tracker.update(A)
    names = tracker.identities
    # Those of the first vectors, where the solution finds them again.
    assert len(set(names[0].tolist())) == 5
    assert tracker.work == ["solved", "kept"]
    check(A[0], sk.SVD(*(x[0] for x in found)), Only(tracker, 0))
    assert tracker.state_dict()["warm"] == [[True, True]]


class Only:
    """A tracker's last update of one matrix of a batch."""

    def __init__(self, tracker: Any, i: int) -> None:
        self.tolerance = tracker.tolerance
        self.bounds, self.lost = tracker.bounds[i], tracker.lost[i]
        self.error_norms = tracker.error_norms[i]


@pytest.mark.parametrize("shape", [(30, 18), (18, 30)])
def test_zero_values_keep_orthonormal_vectors(shape: tuple[int, int]) -> None:
    """The range on the long side turns, by a degree at a time: the others turn out of its way."""
    rank, r, long = 5, 18, 30
    stands = matrices.orthonormal(r, rank, 2)
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    first: Any = None
    for i, t in enumerate(np.linspace(0.0, 0.1, 6)):
        turns = matrices.gaussian(long, rank) + t * matrices.gaussian(long, rank, 1)
        X = torch.from_numpy((np.linalg.qr(turns).Q * np.linspace(3.0, 2.0, rank)) @ stands.T)
        found: Any = tracker.update(X if shape == (long, r) else X.mT)
        assert (tracker.work == ["solved"]) == (i == 0)
        rows = found.U.mT if shape == (long, r) else found.Vh
        first = rows.clone() if first is None else first
        # A turn of 0.02 is wrong by its square at most, which the next one takes away.
        assert float((rows @ rows.mT - torch.eye(r)).abs().max()) < 1e-3
    assert float((first @ rows.mT - torch.eye(r)).abs().max()) > 0.05
    X = X if shape == (long, r) else X.mT
    tracker.update(X)
    assert float((rows @ rows.mT - torch.eye(r)).abs().max()) < 1e-6
    # What is not a number leaves no directions to go on from, which asks for a solution.
    for A, work in ((X * np.nan, "not finite"), (X, "kept"), (X, "solved"), (X, "kept")):
        tracker.update(A)
        assert tracker.work == [work]
        assert bool(rows.isnan().all()) == (work == "not finite")
    assert float((rows @ rows.mT - torch.eye(r)).abs().max()) < 1e-6


def test_a_zero_matrix_and_back() -> None:
    A = torch.randn(9, 4)
    tracker = sk.SpectrumTracker()
    for factor in (0.0, 0.0, 1.0, 1.0, 0.0, float("nan"), 0.0, 0.0):
        found: Any = tracker.update(factor * A)
        check(factor * A, found, tracker)
    eye = torch.eye(4)
    torch.testing.assert_close(found.U.mT @ found.U, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.Vh @ found.Vh.mT, eye, atol=1e-5, rtol=0)


def test_a_finite_matrix_whose_values_are_not_is_solved() -> None:
    """sigma_1 = 16 times 3e38 is beyond float32, in which the solver would have it infinite."""
    tracker = sk.SpectrumTracker()
    A = torch.full((16, 16), 3e38)
    for work in ("solved", "kept"):
        result: Any = tracker.update(A)
        assert not tracker.lost
        assert tracker.work == [work]
        assert result.S[0].isinf()
        assert result.S[1:].isfinite().all()
        v = result.Vh[0].abs()
        torch.testing.assert_close(v, torch.full((16,), 0.25), rtol=0, atol=1e-6)


def test_lost_matrices_are_solved_with_a_later_update() -> None:
    """Signs and names of what is found again stay; what is new has a new name."""
    A = torch.from_numpy(matrices.with_spectrum(20, 4, np.array([8.0, 6.0, 4.0, 2.0])))
    other = torch.from_numpy(matrices.gaussian(20, 4))
    tracker = sk.SpectrumTracker(tolerance=1e-6)
    tracker.update([A, A])
    # Not the signs that a solver would choose: those that are to be carried on.
    state = tracker.state_dict()
    tracker.load_state_dict({**state, "vectors": [-V for V in state["vectors"]]})
    before: Any = tracker.update([A, A])
    assert tracker.work == ["kept", "kept"]
    assert [x.tolist() for x in tracker.identities] == [[0, 1, 2, 3]] * 2  # type: ignore[union-attr]
    B = A + 0.4 * other
    honest: Any = tracker.update([B, A])
    check(B, honest[0], Only(tracker, 0))
    assert [bool(x) for x in tracker.lost] == [True, False]  # type: ignore[union-attr]
    assert tracker.work == ["rotated three times", "kept"]
    solved: Any = tracker.update([B, A])
    assert tracker.work == ["solved", "kept"]
    assert tracker.resolves == 1
    assert bool(((before[0].Vh * solved[0].Vh).sum(dim=1) > 0.5**0.5).all())
    assert [x.tolist() for x in tracker.identities] == [[0, 1, 2, 3]] * 2  # type: ignore[union-attr]
    tracker.update([B, A])
    assert tracker.work == ["kept", "kept"]
    assert tracker.resolves == 1
    # A stranger to all old vectors, solved before any rotation turns them towards it.
    mixed = torch.from_numpy(np.ones((4, 4)) / 2 - np.eye(4))
    B.copy_(solved[0].U * solved[0].S @ mixed @ solved[0].Vh)
    tracker.resolve([[0], []])
    tracker.update([B, A])
    assert tracker.work == ["solved", "kept"]
    assert tracker.resolves == 2
    numbers: Any = tracker.identities
    assert min(numbers[0].tolist()) >= 4
    assert numbers[1].tolist() == [0, 1, 2, 3]


def test_state_goes_on_here_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [A.float() for A in brownian(12, 9, 5e-3, steps=6)()]
    first = sk.SpectrumTracker()
    for A in steps[:3]:
        first.update(A)
    state = first.state_dict()
    assert state["vectors"][0].dtype == torch.float64
    second = sk.SpectrumTracker()
    second.load_state_dict(state)
    expected = []
    for A in steps[3:]:
        a, b = first.update(A), second.update(A)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert torch.equal(first.bounds, second.bounds)  # type: ignore[arg-type]
        assert first.work == second.work
        expected.append((a, first.identities))
    # The vectors of one backend are as good for another, there and back.
    for name, other in (("cpu", "triton"), ("torch", "triton")):
        tracker = sk.SpectrumTracker()
        tracker.load_state_dict(state)
        for backend, A, (want, names) in zip((name, other, name), steps[3:], expected, strict=True):
            monkeypatch.setenv(dispatch.ENVIRONMENT, backend)
            found: Any = tracker.update(A)
            tracker_state = tracker.state_dict()
            assert tracker_state["warm"] == [[True]]
            torch.testing.assert_close(found.S, want.S, rtol=0, atol=2e-3 * float(want.S[0]))
            assert tracker.identities.tolist() == names.tolist()  # type: ignore[union-attr]
            assert tracker.resolves == 0
            moved = sk.SpectrumTracker()
            moved.load_state_dict(tracker_state)
            tracker = moved


def test_results_are_the_callers_unless_buffers_are_reused() -> None:
    A = torch.randn(7, 5)
    tracker, reusing = sk.SpectrumTracker(), sk.SpectrumTracker(reuse_buffers=True)
    first: Any = tracker.update(A)
    codes: Any = tracker.codes
    copies = [x.clone() for x in first]
    tracker.update(2 * A)
    assert all(torch.equal(x, y) for x, y in zip(first, copies, strict=True))
    assert int(codes) == 4
    a: Any = reusing.update(A)
    place = a.U.data_ptr()
    # Other memory, the same results' place.
    b: Any = reusing.update(2 * A)
    assert b.U.data_ptr() == place
    assert torch.equal(b.S, tracker.update(2 * A).S)  # type: ignore[union-attr]


def test_nothing_waits_and_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once warm: matrices kept, turned, lost, zero and not finite, in float32 and float64."""
    A = [torch.randn(4, 12, 8), torch.randn(2, 6, 9).double(), torch.randn(5, 5)]
    A[0][3] = 0
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    for _ in range(2):
        tracker.update(A)
    seen = {}
    with nothing_waits(monkeypatch) as refusal:
        results: Any = tracker.update(A)
        launches = refusal.launches
        seen["kept"] = _places(tracker, results)
        A[0][0] += 1e-2 * torch.randn(12, 8)
        A[0][1, 0, 0] = float("nan")
        A[0][2] = torch.randn(12, 8)
        results = tracker.update(A)
        assert refusal.launches == 2 * launches
        seen["moved"] = _places(tracker, results)
        codes: Any = tracker.codes
        lost: Any = tracker.lost
    assert seen["kept"] == seen["moved"]
    assert codes[0].tolist()[:2] == [1, -1]
    assert lost[0].tolist() == [False, False, True, False]
    assert [x.tolist() for x in lost[1:]] == [[False] * 2, False]
    # Whatever asks is refused: the flags are not what lets this pass.
    for ask in (lambda: codes[0].tolist(), lambda: bool(lost[2]), lambda: A[0][A[0] > 0]):
        with nothing_waits(monkeypatch), pytest.raises(AssertionError, match="waits for the dev"):
            ask()


def _places(tracker: sk.SpectrumTracker, results: Any) -> list[int]:
    states: Any = tracker._tracker._states
    told: Any = (tracker.bounds, tracker.error_norms, tracker.identities, tracker.codes)
    kept = [(s.vectors, s.drift, s.names) for s in states._states]
    return [x.data_ptr() for x in _flat([*results, *told, *kept])]


def test_islice_of_training_is_tracked_without_loss() -> None:
    """Small steps of a real run: nothing is ever lost, and something has to be done."""
    tracker = sk.SpectrumTracker()
    work = set()
    for A in islice(TRAJECTORIES["training"](), 100, 108):
        check(A, tracker.update(A), tracker)
        work.update(tracker.work)
    assert tracker.resolves == 0
    assert work & {"rotated", "rotated twice"}
