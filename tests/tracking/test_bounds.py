"""SpectrumTracker: its bounds against NumPy float64 along trajectories."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.tracking.bounds import certify
from tests.support import matrices, tolerances
from tests.support.tracked import check
from tests.support.trajectories import TRAJECTORIES, brownian, follow


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_the_bound_holds(name: str, dtype: torch.dtype, every_isa: str) -> None:
    tracker = sk.SpectrumTracker(tolerance=tolerances.TRACKER)
    follow(tracker, name, dtype, check)


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
    assert np.median(tight) < tolerances.TRACKER


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
