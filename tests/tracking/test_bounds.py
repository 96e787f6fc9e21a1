"""SpectrumTracker: its bounds against NumPy float64 along trajectories, and what it carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.tracking.bounds import certify
from tests.support import matrices
from tests.support.trajectories import TRAJECTORIES, brownian

TOLERANCE = 1e-3


def check(A: torch.Tensor, result: sk.SVD, tracker: sk.SpectrumTracker) -> None:
    """The theorems, the tolerance, the residual, order and orthonormality."""
    bounds: Any = tracker.bounds
    tolerance = tracker.tolerance
    if not bool(A.isfinite().all()):
        assert all(bool(x.isnan().all()) for x in (*result, bounds))
        return
    m, n = A.shape
    r = min(m, n)
    eps = torch.finfo(result.S.dtype).eps
    assert bounds.dtype == torch.float64
    assert ([*result.U.shape], [*result.S.shape], [*result.Vh.shape]) == ([m, r], [r], [r, n])
    exact = A.double().numpy()
    truth = np.linalg.svd(exact, compute_uv=False)
    S, radii = result.S.double().numpy(), bounds.numpy()
    assert (np.diff(S) <= 0).all()
    assert (S >= 0).all()
    # NumPy's own error is no fault of the bound.
    slack = 4 * np.finfo(float).eps * truth[0]
    assert (np.abs(S - truth) <= radii + slack).all()
    assert np.linalg.norm(S - truth) <= float(tracker.error_norms) + r**0.5 * slack
    noise = (8 * eps + 1e-10) * truth[0] + torch.finfo(result.S.dtype).smallest_normal * eps
    assert (radii <= tolerance * S[0] + noise).all()

    U, Vh = result.U.double().numpy(), result.Vh.double().numpy()
    size = 2 * radii.max() + 12 * max(r, 4) ** 0.5 * eps * truth[0]
    assert np.linalg.norm(exact - (U * S) @ Vh) <= r**0.5 * size
    short, long = (Vh @ Vh.T, U.T @ U) if m >= n else (U.T @ U, Vh @ Vh.T)
    assert np.abs(short - np.eye(r)).max() <= (1e-6 if result.S.dtype == torch.float64 else 2e-4)
    # What a cosine of two long vectors may be hangs on the values: it is what the bound allows.
    assert np.abs(np.diag(long) - 1).max() <= (1e-6 if result.S.dtype == torch.float64 else 1e-5)
    assert (np.abs(long - np.eye(r)) * np.minimum(S, S[:, None])).max() <= 1.25 * size


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_the_bound_holds(name: str, dtype: torch.dtype, every_isa: str) -> None:
    tracker = sk.SpectrumTracker(tolerance=TOLERANCE)
    for step in TRAJECTORIES[name]():
        A = step.to(dtype)
        result = tracker.update(A)
        assert isinstance(result, sk.SVD)
        assert result.S.dtype == dtype
        check(A, result, tracker)
        assert (tracker.work == ["not finite"]) == (not bool(A.isfinite().all()))


def test_the_theorem_far_from_convergence() -> None:
    """Any V at all, cosines and departures up to and beyond 1, values down to nothing."""
    tightest = 0.0
    for seed in range(60):
        generator = matrices.rng(seed)
        sigma = np.logspace(0, -generator.choice([0.1, 1.0, 4.0, 12.0]), 9)
        X = matrices.with_spectrum(14, 9, sigma, seed)
        V = np.linalg.svd(X).Vh.T
        V = V @ np.linalg.qr(np.eye(9) + 10 ** generator.uniform(-6, 0) * matrices.gaussian(9, 9)).Q
        V = V + 10 ** generator.uniform(-6, -0.5) * matrices.gaussian(9, 9, seed + 1)
        gram = torch.from_numpy((X @ V).T @ (X @ V))
        departure = torch.from_numpy(V.T @ V - np.eye(9))
        values, radii, rounding, norm = certify(gram, departure, 14, torch.float64)
        order = values.argsort(descending=True)
        error = np.abs(values[order].numpy() - sigma)
        assert np.linalg.norm(error) <= norm
        assert (error <= (radii[order] + rounding).numpy()).all()
        tightest = max(tightest, float((error / radii[order].numpy()).max()))
    # A theorem that is far above every error would not be tested by this.
    assert tightest > 0.3


@pytest.mark.parametrize("tolerance", [1e-6, 1e-2, 0.5])
def test_other_tolerances(tolerance: float, every_isa: str) -> None:
    for speed in (1e-4, 1e-2, 5e-2):
        tracker = sk.SpectrumTracker(tolerance=tolerance)
        for A in brownian(30, 22, speed)():
            check(A.float(), tracker.update(A.float()), tracker)


@pytest.mark.parametrize("shape", [(128, 128), (300, 96), (60, 250), (330, 350)])
def test_sizes_of_real_layers(shape: tuple[int, int], backend: str) -> None:
    """Rounding grows with the size: what is proved of it must still fit the tolerance."""
    tracker = sk.SpectrumTracker()
    work = set()
    for A in brownian(*shape, 2e-4, steps=12)():
        check(A.float(), tracker.update(A.float()), tracker)
        work.update(tracker.work[:1])
    assert "rotated" in work


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision(dtype: torch.dtype, every_isa: str) -> None:
    tracker = sk.SpectrumTracker()
    for step in brownian(20, 12, 1e-3, steps=6)():
        A = step.to(dtype)
        result = tracker.update(A)
        assert result.U.dtype == result.S.dtype == torch.float32
        check(A, result, tracker)


def test_work_grows_with_the_speed(every_isa: str) -> None:
    """Nothing to do while nothing happens, no tracking where there is nothing to track."""
    seen = {}
    for speed in (0.0, 3e-3, 10.0):
        tracker = sk.SpectrumTracker()
        work = []
        for A in brownian(40, 30, speed, steps=8)():
            tracker.update(A.float())
            work += tracker.work
        assert work[0] == "solved"
        assert tracker.resolves == work[1:].count("solved")
        seen[speed] = set(work[1:])
    assert seen[0.0] == {"kept"}
    assert seen[3e-3] <= {"rotated", "rotated twice"}
    assert seen[10.0] == {"solved"}


def test_the_bound_says_something(every_isa: str) -> None:
    tracker = sk.SpectrumTracker(tolerance=0.1)
    tight = []
    for A in brownian(40, 30, 1e-6)():
        S = tracker.update(A.float()).S
        tight.append(float(tracker.bounds.max() / S[0]))
    assert np.median(tight) < TOLERANCE


@pytest.mark.parametrize("shape", [(50, 40), (12, 30), (7, 7)])
def test_wrong_vectors_are_noticed(shape: tuple[int, int], every_isa: str) -> None:
    A = torch.from_numpy(matrices.gaussian(*shape)).float()
    r = min(shape)
    tracker = sk.SpectrumTracker()
    tracker.update(A)
    right = tracker.state_dict()
    bases = [matrices.orthonormal(r, r, seed) for seed in range(7, 10)]
    for i, V in enumerate([*bases, np.eye(r)]):
        tracker.load_state_dict({**right, "vectors": [torch.from_numpy(V)[None]], "resolves": i})
        check(A, tracker.update(A), tracker)
        assert tracker.work == ["solved"]
        assert tracker.resolves == i + 1
        tracker.update(A)
        assert tracker.work == ["kept"]
    # Slightly wrong: mended, or solved, but not believed.
    for slip in (0.995, 1.004):
        tracker.load_state_dict({**right, "vectors": [right["vectors"][0] * slip]})
        error = tracker.update(A).S.double().numpy() - np.linalg.svd(A.double().numpy())[1]
        assert (np.abs(error) <= tracker.bounds.numpy()).all()
        assert tracker.work != ["kept"]


def test_vectors_that_are_none_are_refused(backend: str) -> None:
    tracker = sk.SpectrumTracker()
    tracker.update(torch.randn(6, 4))
    right = tracker.state_dict()
    V = right["vectors"][0]
    for wrong in (0 * V, 1.5 * V, V[..., [0, 0, 1, 2]], V + float("nan"), V + 1e300):
        with pytest.raises(ValueError, match=r"vectors\[0\]\[0\] has columns that are not orth"):
            tracker.load_state_dict({**right, "vectors": [wrong]})
    # A refused state changes nothing.
    assert tracker.work == ["solved"]


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
