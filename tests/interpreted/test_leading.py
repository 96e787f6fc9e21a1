"""Leading updates that wait for nothing: bounds along trajectories, what is lost, what stays."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.runtime import dispatch
from tests.support import matrices
from tests.support.leading_checks import K, check, steep
from tests.support.trajectories import TRAJECTORIES, brownian, crossing
from tests.support.waiting import nothing_waits

# Of the trajectories those that differ for this method: an interpreter takes seconds for an update.
_NAMES = (
    "one column", "tall", "wide", "very fast", "jumps", "collapse", "rank-deficient", "graded",
    "denormal in float32",
)  # fmt: skip


def test_the_kernels_run() -> None:
    module = dispatch.backend("tracking.leading", "cpu")
    assert module.__name__ == "spectral_kernels.tracking.leading.triton_backend"


@pytest.mark.parametrize("name", _NAMES)
def test_the_bounds_hold(name: str) -> None:
    tracker = sk.SpectrumTracker(K)
    steps = list(TRAJECTORIES[name]())
    for step in steps[:: max(1, len(steps) // 3)]:
        A = step.float()
        result = tracker.update(A)
        assert isinstance(result, sk.SVD)
        check(A, result, tracker)
        assert (tracker.work == ["not finite"]) == (not bool(A.isfinite().all()))


def test_nothing_waits_and_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [[A.float(), A[:, :24].float()] for A in brownian(40, 30, 5e-3, steps=5)()]
    tracker = sk.SpectrumTracker(K, reuse_buffers=True)
    first = tracker.update(steps[0])
    places = [x.data_ptr() for result in first for x in result]
    places += [x.data_ptr() for x in tracker.bounds]
    memory = [A.clone() for A in steps[0]]
    tracker.update(memory)
    launches = set()
    for step in steps[1:]:
        for A, B in zip(memory, step, strict=True):
            A.copy_(B)
        with nothing_waits(monkeypatch) as told:
            results = tracker.update(memory)
        launches.add(told.launches)
        now = [x.data_ptr() for result in results for x in result]
        assert [*now, *(x.data_ptr() for x in tracker.bounds)] == places
        for A, S in zip(step, (x.S for x in results), strict=True):
            truth = np.linalg.svd(A.double().numpy(), compute_uv=False)[:K]
            assert np.abs(S.numpy() - truth).max() <= 1e-3 * truth[0]
    # Two shapes; the same launches at every update, whatever the numbers are.
    assert len(launches) == 1


def test_a_block_that_is_lost_is_started_anew() -> None:
    """Weights replaced by some that the old block is blind to: told at once, found at the next."""
    first, blind = torch.zeros(40, 50), torch.zeros(40, 50)
    first[:20, :25] = torch.from_numpy(matrices.gaussian(20, 25)).float()
    blind[20:, 25:] = torch.from_numpy(matrices.gaussian(20, 25, 1)).float()
    tracker = sk.SpectrumTracker(K)
    for _ in range(2):
        tracker.update(first)
    assert tracker.resolves == 0
    check(blind, tracker.update(blind), tracker)
    assert bool(tracker.lost)
    result = tracker.update(blind)
    check(blind, result, tracker)
    assert (tracker.work, tracker.resolves, bool(tracker.lost)) == (["solved"], 1, False)
    truth = np.linalg.svd(blind.double().numpy(), compute_uv=False)[:K]
    assert np.abs(result.S.numpy() - truth).max() <= 2e-2 * truth[0]
    tracker.update(blind)
    assert tracker.work == ["one iteration"]


def test_identities_and_signs_through_a_crossing() -> None:
    tracker = sk.SpectrumTracker(8)
    before: sk.SVD | None = None
    numbers: list[int] = []
    for step in islice(crossing(), 0, None, 3):
        now = tracker.update(step.float())
        order = tracker.identities.tolist()
        if before is not None:
            overlap = before.Vh @ now.Vh.T
            for new, number in enumerate(order):
                assert float(overlap[numbers.index(number), new]) > 0.5
        else:
            assert order == list(range(8))
            pivot = now.U.gather(0, now.U.abs().argmax(dim=0, keepdim=True))
            assert bool((pivot > 0).all())
        before, numbers = now, order
    assert numbers == [0, 1, 2, 4, 3, 5, 6, 7]


@pytest.mark.parametrize("rank", [1, 8])
def test_low_rank_is_known_to_be_low(rank: int) -> None:
    """By subtracting the block: the difference of two norms would say 1e-2 at best."""
    A = torch.from_numpy(matrices.with_spectrum(70, 50, np.linspace(2.0, 1.0, rank))).float()
    tracker = sk.SpectrumTracker(8)
    for _ in range(2):
        check(A, tracker.update(A), tracker, 8)
        assert float(tracker.error_norms) <= 1e-3


def test_bad_and_zero_matrices_leave_the_state() -> None:
    A = torch.stack([steep(30, 20, 1.0, seed) for seed in range(3)])
    tracker = sk.SpectrumTracker(K)
    assert tracker.update(0 * A).S.abs().max() == 0
    assert tracker.identities.tolist() == [list(range(K))] * 3
    tracker.reset()
    tracker.update(A)
    bad = A.clone()
    bad[1, 2, 3] = float("inf")
    bad[2] = 0
    result = tracker.update(bad)
    assert tracker.work == ["one iteration", "not finite", "one iteration"]
    told = (*result, tracker.bounds, tracker.residuals, tracker.frobenius_norms)
    assert all(bool(x[1].isnan().all()) for x in told)
    assert all(bool(x[[0, 2]].isfinite().all()) for x in told)
    assert tracker.identities.tolist() == [list(range(K)), [-1] * K, list(range(K))]
    tracker.update(A)
    assert tracker.work == ["one iteration"] * 3
    assert tracker.identities.tolist() == [list(range(K))] * 3


def test_scales_that_change() -> None:
    A = steep(40, 30, 2.0)
    tracker = sk.SpectrumTracker(K)
    tracker.update(A)
    for factor in (1e-41, 1e-30, 1e30, 1.0):
        check(factor * A, tracker.update(factor * A), tracker)
        assert tracker.work == ["one iteration"]


def test_lists_share_launches_and_state_goes_on_bit_by_bit() -> None:
    torch.manual_seed(3)
    shapes: list[tuple[int, ...]] = [(2, 24, 20), (20, 24), (0, 4), (24, 20), (3, 20, 24)]
    tensors = [torch.randn(shape) for shape in shapes]
    first, second = sk.SpectrumTracker(4), sk.SpectrumTracker(4)
    for _ in range(2):
        first.update(tensors)
    second.load_state_dict(first.state_dict())
    # Past the update at which random columns come in.
    for _ in range(3):
        tensors = [A + 1e-3 * torch.randn(A.shape) for A in tensors]
        for A, a, b in zip(tensors, first.update(tensors), second.update(tensors), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
            assert a.U.shape == (*A.shape[:-1], min(4, *A.shape[-2:]))
        for name in ("bounds", "error_norms", "residuals", "frobenius_norms", "identities"):
            pairs = zip(getattr(first, name), getattr(second, name), strict=True)
            assert all(torch.equal(x, y) for x, y in pairs)
    truth = torch.linalg.svdvals(tensors[0].double())[:, :4]
    errors = (first.update(tensors)[0].S - truth).abs()
    assert bool((errors <= first.bounds[0]).all())


def test_float64_waits_for_the_other_backend() -> None:
    A = steep(30, 20, 1.0).double()
    tracker = sk.SpectrumTracker(K)
    for _ in range(2):
        check(A, tracker.update(A), tracker)
    tracker.reset()
    tracker.update(A.float())
    state = tracker.state_dict()
    assert state["warm"] == [[True]]
