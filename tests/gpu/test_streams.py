"""What only a GPU has, through the public names: streams, graphs, no synchronisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import spectral_kernels as sk


def operations(A: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Hot-path calls on matrices that fit on a multiprocessor."""
    return {
        "svdvals": lambda: sk.svdvals(A),
        "svd": lambda: sk.svd(A),
        "spectral_summary": lambda: sk.spectral_summary(A),
    }


NAMES = ["svdvals", "svd", "spectral_summary"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_synchronises(cuda: str, name: str) -> None:
    run = operations(torch.randn(6, 40, 33, device=cuda))[name]
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [x for part in result for x in flat(part)]


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_replays_on_new_numbers(cuda: str, name: str) -> None:
    A = torch.randn(6, 40, 33, device=cuda)
    run = operations(A)[name]
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    A.copy_(torch.randn(6, 40, 33))
    graph.replay()
    for found, expected in zip(flat(captured), flat(run()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_kernels_run_on_the_current_stream(cuda: str) -> None:
    A = torch.randn(64, 60, 50, device=cuda)
    expected = sk.svdvals(2.0 * A)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Long enough that kernels on another stream would read A before it is doubled.
        torch.cuda._sleep(50_000_000)
        A.mul_(2.0)
        found = sk.svdvals(A)
    stream.synchronize()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_cupy_stays_on_the_current_stream_too(cuda: str) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    A = cupy.random.standard_normal((5, 40, 30)).astype(cupy.float32)
    summary = sk.spectral_summary(A)
    assert all(isinstance(x, cupy.ndarray) for x in summary)
    y = sk.usv_matmul(A[0], *sk.svd(A[0]))
    assert isinstance(y, cupy.ndarray)
    assert float(abs(y - A[0] @ A[0].T).max()) < 1e-3
