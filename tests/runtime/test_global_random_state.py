"""No call of the library reads or moves the random state that a training run depends on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import spectral_kernels as sk


@contextmanager
def unmoved() -> Iterator[None]:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[2])


def tracker(k: int | None) -> Callable[[np.ndarray], object]:
    def run(A: np.ndarray) -> object:
        found = sk.SpectrumTracker(k)
        # Fresh directions are looked for at some updates only.
        return [found.update(A + 1e-3 * i) for i in range(20)][-1]

    return run


CALLS: dict[str, Callable[[np.ndarray], object]] = {
    "svd": sk.svd,
    "svdvals": sk.svdvals,
    "rsvd": lambda A: sk.rsvd(A, 4),
    "rsvd of a list": lambda A: sk.rsvd([A, A.T], [3, 4]),
    "spectral_summary": sk.spectral_summary,
    "decompose": lambda A: sk.decompose(A, 4),
    "tracker": tracker(None),
    "tracker of k": tracker(4),
}


@pytest.mark.parametrize("call", CALLS)
def test_functions_leave_it_alone(call: str, backend: str) -> None:
    A = np.random.default_rng(0).standard_normal((48, 40)).astype(np.float32)
    with unmoved():
        CALLS[call](A)
        CALLS[call](torch.from_numpy(A))


@pytest.mark.parametrize("method", ["exact", "tracked", "randomized"])
def test_monitors_leave_it_alone(method: str, backend: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.ReLU(), torch.nn.Linear(40, 36))
    with unmoved():
        k = {"k": 4} if method == "randomized" else {}
        monitor = sk.SpectralMonitor(model, method=method, every=1, **k)
        for _ in range(3):
            monitor.step()
        monitor.explain()


def test_decomposing_a_model_leaves_it_alone() -> None:
    model = torch.nn.Sequential(
        torch.nn.Embedding(9, 16), torch.nn.Conv1d(4, 8, 3), torch.nn.Linear(16, 12)
    )
    with unmoved():
        sk.decompose_model(model, {"*": 0.5})
        sk.compress_model(model, energy=0.9)
        sk.recompose_model(model)


def test_rsvd_without_a_generator_has_one_seed(backend: str) -> None:
    A = torch.randn(60, 50)
    torch.manual_seed(1)
    first = sk.rsvd(A, 4, power_iters=0)
    torch.manual_seed(2)
    second = sk.rsvd(A.numpy(), 4, power_iters=0)
    for x, y in zip(first, second, strict=True):
        assert np.array_equal(x.numpy(), y)
    other = sk.rsvd(A, 4, power_iters=0, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other.S, first.S)
