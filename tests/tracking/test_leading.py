"""SpectrumTracker(k): leading triplets against NumPy float64 along trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.tracking.leading.bounds import BlockErrors, certify
from tests.support import matrices
from tests.support.compiled import need_compiled
from tests.support.leading_checks import K, check, steep
from tests.support.trajectories import TRAJECTORIES, brownian, crossing

TOLERANCE = 1e-3
ITERATIONS = ["one iteration", "two iterations", "three iterations"]


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_the_bounds_hold(name: str, dtype: torch.dtype, every_isa: str) -> None:
    tracker = sk.SpectrumTracker(K, tolerance=TOLERANCE)
    for step in TRAJECTORIES[name]():
        A = step.to(dtype)
        result = tracker.update(A)
        assert isinstance(result, sk.SVD)
        assert result.S.dtype == dtype
        check(A, result, tracker)
        assert (tracker.work == ["not finite"]) == (not bool(A.isfinite().all()))


def test_the_theorem_far_from_convergence() -> None:
    """Any block at all: spectra flat and steep, Q random, near, or exact."""
    tightest = 0.0
    for seed in range(200):
        generator = matrices.rng(seed)
        sigma = np.logspace(0, -generator.choice([0.05, 0.5, 2.0, 6.0]), 14)
        A = matrices.with_spectrum(20, 14, sigma, seed)
        V = np.linalg.svd(A).Vh.T[:, generator.permutation(14)[:6] if seed % 3 else slice(6)]
        Q = np.linalg.qr(V + 10 ** generator.uniform(-6, 0.5) * matrices.gaussian(14, 6, seed)).Q
        U, M = np.linalg.qr(A @ Q)
        P, s, _ = np.linalg.svd(U.T @ A, full_matrices=False)
        rest = torch.tensor(np.linalg.norm(A - U @ (U.T @ A)))
        seen = torch.from_numpy(np.linalg.norm(M.T @ P, axis=0))
        bounds, norm, _ = certify(torch.from_numpy(s), seen, rest, BlockErrors(0.0, 0.0, 0.0), 4)
        error = sigma[:4] - s[:4]
        assert (error <= bounds.numpy() + 1e-12).all()
        assert np.linalg.norm(error) <= float(norm) + 1e-12
        tightest = max(tightest, float((error[error > 1e-9] / bounds.numpy()[error > 1e-9]).max(
            initial=0.0)))  # fmt: skip
    # A theorem that is far above every error would not be tested by this.
    assert tightest > 0.5


def test_compiled_bounds_are_those_of_the_theorem(monkeypatch: pytest.MonkeyPatch) -> None:
    """From blocks near and far, in float64, where rounding hides nothing."""
    need_compiled()
    compared = 0
    for seed in range(24):
        A = steep(40, 30, 0.5 + seed % 4, seed).double()
        start = sk.SpectrumTracker(K, tolerance=0.9)
        start.update(A)
        state = start.state_dict()
        V = torch.linalg.svd(A).Vh.mT[:, : state["vectors"][0].shape[-1]]
        noise = 10.0 ** -(seed % 5) * torch.from_numpy(matrices.gaussian(*V.shape, seed))
        state["vectors"] = [torch.linalg.qr(V + noise).Q[None].contiguous()]
        state["updates"] = 1
        found = []
        for name in ("cpu", "torch"):
            monkeypatch.setenv("SPECTRAL_KERNELS_BACKEND", name)
            tracker = sk.SpectrumTracker(K, tolerance=0.9)
            tracker.load_state_dict(state)
            found.append((tracker.update(A), tracker.bounds, tracker.work))
        (result, ours, work), (_, theirs, work_too) = found
        if work == work_too == ["one iteration"]:
            compared += 1
            # The compiled one leaves out cuts that can help little, and adds more for rounding.
            top = float(result.S[0])
            assert bool((ours >= theirs * (1 - 1e-6) - 1e-9 * top).all())
            assert bool((ours <= theirs * 1.5 + 1e-3 * top).all())
    assert compared >= 8


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (64, 64), (75, 61)])
def test_bounds_within_the_tolerance_where_the_rest_is_small(
    shape: tuple[int, int], every_isa: str
) -> None:
    tracker = sk.SpectrumTracker(8, tolerance=TOLERANCE)
    A = steep(*shape, power=3.0)
    for i in range(8):
        check(A, tracker.update(A), tracker, 8)
        assert float(tracker.bounds.max()) <= TOLERANCE * float(tracker.update(A).S[0])
        A = A + 1e-6 * torch.from_numpy(matrices.gaussian(*shape, i)).float()


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_low_rank_is_known_to_be_low(rank: int, every_isa: str) -> None:
    """The difference of two norms would say 1e-2 at best in float32."""
    A = torch.from_numpy(matrices.with_spectrum(100, 70, np.linspace(2.0, 1.0, rank))).float()
    tracker = sk.SpectrumTracker(8)
    for _ in range(3):
        check(A, tracker.update(A), tracker, 8)
        assert float(tracker.error_norms) <= 5e-4


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (12, 12)])
@pytest.mark.parametrize("k", [12, 100])
def test_all_values(shape: tuple[int, int], k: int, every_isa: str) -> None:
    """A block of everything leaves nothing out."""
    A = torch.from_numpy(matrices.gaussian(*shape))
    for dtype, error in ((torch.float32, 4e-7), (torch.float64, 1e-12)):
        tracker = sk.SpectrumTracker(k)
        result = tracker.update(A.to(dtype))
        check(A.to(dtype), result, tracker, k)
        truth = torch.linalg.svdvals(A.to(dtype).double())
        assert float((result.S - truth).abs().max()) <= error * float(truth[0])
        assert float(tracker.bounds.max()) <= TOLERANCE * float(truth[0])


@pytest.mark.parametrize("kind", ["flat", "steep"])
@pytest.mark.parametrize("factor", [1.2, 3.0])
def test_a_direction_that_grows_is_found(kind: str, factor: float, every_isa: str) -> None:
    """One that the block cannot know: exactly orthogonal to it, in a matrix that stands still."""
    m, n = 160, 120
    A = steep(m, n, 0.5) if kind == "steep" else torch.from_numpy(matrices.gaussian(m, n)).float()
    tracker = sk.SpectrumTracker(K)
    for _ in range(4):
        S = tracker.update(A).S
    state = tracker.state_dict()["vectors"][0][0].float()
    x = torch.from_numpy(matrices.gaussian(m, 1, 3)).float()
    y = torch.from_numpy(matrices.gaussian(n, 1, 4)).float()
    # Neither A nor the block sees it: A y = 0 and A^T x = 0 in the block's own terms.
    basis = torch.linalg.qr(state).Q
    y = y - basis @ (basis.T @ y)
    image = torch.linalg.qr(A @ basis).Q
    x = x - image @ (image.T @ x)
    grown = A + factor * float(S[0]) * (x / x.norm()) @ (y / y.norm()).T
    truth = np.linalg.svd(grown.double().numpy(), compute_uv=False)[:K]
    errors = []
    for _ in range(6):
        found = tracker.update(grown).S.double().numpy()
        errors.append(np.abs(found - truth).max() / truth[0])
    assert min(errors) <= 5e-3


def test_a_direction_that_grows_step_by_step(every_isa: str) -> None:
    """From the tail into the first place, a tenth a step, in a matrix that moves."""
    m = n = 128
    x, y = matrices.orthonormal(m, 1, 3), matrices.orthonormal(n, 1, 4)
    A = matrices.gaussian(m, n)
    top = np.linalg.svd(A, compute_uv=False)[0]
    tracker = sk.SpectrumTracker(K)
    late = []
    for i in range(45):
        now = A + min(1.6, 0.1 * 1.1**i) * top * x @ y.T
        S = tracker.update(torch.from_numpy(now).float()).S.double().numpy()
        truth = np.linalg.svd(now, compute_uv=False)[:K]
        late.append(np.abs(S - truth).max() / truth[0])
        A = A + 1e-3 * matrices.gaussian(m, n, i + 1)
    # A tenth a step is what two steps behind would show.
    assert max(late[1:]) <= 0.05
    assert max(late[-10:]) <= TOLERANCE


def test_jumps_are_followed(every_isa: str) -> None:
    """Weights replaced: by others, and by some that the old block is blind to."""
    first = torch.zeros(60, 80)
    first[:30, :40] = torch.from_numpy(matrices.gaussian(30, 40)).float()
    blind = torch.zeros(60, 80)
    blind[30:, 40:] = torch.from_numpy(matrices.gaussian(30, 40, 1)).float()
    tracker = sk.SpectrumTracker(K)
    for A in (first, blind, torch.from_numpy(matrices.gaussian(60, 80, 7)).float()):
        S = tracker.update(A).S.double().numpy()
        truth = np.linalg.svd(A.double().numpy(), compute_uv=False)[:K]
        assert np.abs(S - truth).max() <= 2e-2 * truth[0]
        assert tracker.work == ["solved"]
        tracker.update(A)
        tracker.update(A)
    assert tracker.resolves == 2


def test_work_grows_with_the_speed(every_isa: str) -> None:
    seen = {}
    for speed in (0.0, 10.0):
        tracker = sk.SpectrumTracker(K)
        work = []
        for A in brownian(60, 50, speed, steps=8)():
            tracker.update((A + 3 * steep(60, 50, 1.0).double()).float())
            work += tracker.work
        assert work[0] == "solved"
        assert tracker.resolves == work[1:].count("solved")
        seen[speed] = work
    assert set(seen[0.0][4:]) == {"one iteration"}
    assert set(seen[10.0]) - set(ITERATIONS) == {"solved"}


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


def test_wrong_vectors_are_no_harm(every_isa: str) -> None:
    """A loaded block that is not orthonormal, or zero: bounds hold whatever it is."""
    A = steep(50, 40, 2.0)
    tracker = sk.SpectrumTracker(K)
    tracker.update(A)
    right = tracker.state_dict()
    V = right["vectors"][0]
    for wrong in (0 * V, 1.5 * V, V[..., [0] * V.shape[-1]], V + 1e30, torch.randn(V.shape)):
        tracker.load_state_dict({**right, "vectors": [wrong]})
        for _ in range(3):
            check(A, tracker.update(A), tracker)
