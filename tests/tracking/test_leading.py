"""SpectrumTracker(k): its bounds against NumPy float64 along trajectories."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.tracking.leading.bounds import BlockErrors, certify
from tests.support import matrices, tolerances
from tests.support.compiled import need_compiled
from tests.support.leading_checks import ITERATIONS, K, check, steep
from tests.support.trajectories import TRAJECTORIES, brownian, follow


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_the_bounds_hold(name: str, dtype: torch.dtype, every_isa: str) -> None:
    tracker = sk.SpectrumTracker(K, tolerance=tolerances.TRACKER)
    follow(tracker, name, dtype, check)


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
    tracker = sk.SpectrumTracker(8, tolerance=tolerances.TRACKER)
    A = steep(*shape, power=3.0)
    for i in range(8):
        check(A, tracker.update(A), tracker, 8)
        assert float(tracker.bounds.max()) <= tolerances.TRACKER * float(tracker.update(A).S[0])
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
        assert float(tracker.bounds.max()) <= tolerances.TRACKER * float(truth[0])


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
    assert max(late[-10:]) <= tolerances.TRACKER


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
