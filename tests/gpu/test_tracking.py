"""Updates on a GPU: no synchronisation once warm, one graph for all of them, bounds that hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import spectral_kernels as sk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def layers(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Layers of a small Transformer, a stack of heads, and a matrix whose columns are few."""
    shapes = [(96, 96), (288, 96), (384, 96), (96, 384), (3, 2, 64, 48), (500, 7)]
    return [torch.randn(s, device="cuda").to(dtype) for s in shapes]


def step(A: list[Tensor], speed: float = 1e-3) -> None:
    for x in A:
        x.add_(speed * torch.randn_like(x))


def check(A: list[Tensor], results: Any, tracker: sk.SpectrumTracker) -> None:
    """Bounds against NumPy float64, the tolerance, and the residual."""
    told: Any = tracker.bounds, tracker.lost
    for x, (U, S, Vh), bounds, lost in zip(A, results, *told, strict=True):
        exact = x.double().cpu().numpy()
        truth = np.linalg.svd(exact, compute_uv=False)
        found, radii = S.double().cpu().numpy(), bounds.cpu().numpy()
        top = truth[..., :1]
        assert (np.abs(found - truth) <= radii + 1e-15 * top).all()
        assert not bool(lost.any())
        assert (radii <= (tracker.tolerance + 1e-6) * top).all()
        left = exact - (U.double() * S.double()[..., None, :] @ Vh.double()).cpu().numpy()
        size = 2 * radii.max(axis=-1) + 1e-5 * top[..., 0]
        assert (np.linalg.norm(left, axis=(-2, -1)) <= truth.shape[-1] ** 0.5 * size).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_updates_do_not_wait(dtype: torch.dtype) -> None:
    A = layers(dtype)
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    for _ in range(2):
        step(A)
        tracker.update(A)
    for _ in range(3):
        step(A)
        with no_synchronisation():
            results = tracker.update(A)
        check(A, results, tracker)
    assert tracker.resolves == 0


def test_a_graph_is_the_update() -> None:
    """Replays of one capture equal updates of another tracker, and move nothing."""
    A = layers()
    captured, eager = (sk.SpectrumTracker(reuse_buffers=True) for _ in range(2))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            captured.update(A)
            eager.update(A)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results: Any = captured.update(A)
    places = [x.data_ptr() for svd in results for x in svd]
    for i in range(4):
        step(A)
        if i == 2:
            A[0].copy_(torch.randn_like(A[0]))
            A[1][5, 5] = torch.nan
        with no_synchronisation():
            graph.replay()
        expected: Any = eager.update(A)
        for a, b in zip(results, expected, strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, equal_nan=True)
        assert captured.work == eager.work
        if i == 2:
            lost: Any = captured.lost
            assert [bool(x.any()) for x in lost] == [True] + [False] * 5
            assert captured.work[1] == "not finite"
            A[1][5, 5] = 1.0
            captured.resolve([[0], [], [], [], [], []])
            graph.replay()
            assert captured.work[0] == "solved"
            eager.update(A)
    check(A, results, captured)
    assert [x.data_ptr() for svd in results for x in svd] == places


def test_lost_matrices_are_solved_without_being_asked() -> None:
    A = layers()
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    for _ in range(2):
        tracker.update(A)
    A[3].copy_(torch.randn_like(A[3]))
    tracker.update(A)
    torch.cuda.synchronize()
    results = tracker.update(A)
    assert tracker.work[3] == "solved"
    assert tracker.resolves == 1
    check(A, results, tracker)


def test_a_state_from_the_cpu_goes_on_and_back() -> None:
    A = layers()
    here, there = sk.SpectrumTracker(), sk.SpectrumTracker()
    there.update([x.cpu() for x in A])
    here.load_state_dict(there.state_dict())
    step(A, 1e-5)
    results = here.update(A)
    check(A, results, here)
    assert here.resolves == 0
    assert "solved" not in here.work
    there.load_state_dict(here.state_dict())
    there.update([x.cpu() for x in A])
    assert "solved" not in there.work
