"""What usv_matmul and recompose keep and allocate: counted from the allocator's own events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import spectral_kernels as sk
from spectral_kernels.factored import matmul

# Many rows (the core goes into U or Vh) and few (it is applied to them).
SIZES = [(600, 90, 130, 24), (600, 130, 90, 24), (50, 130, 90, 24), (16, 70, 300, 40)]
FLOAT_BYTES = 4


@pytest.fixture(params=["torch.mm", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many numbers the library that multiplies takes for itself."""
    onednn = request.param == "oneDNN"
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: onednn)
    monkeypatch.setattr(matmul, "LEAST", 0)
    # Seen: 65,744 numbers for each thread.
    return 2**17 * torch.get_num_threads() if onednn else 0


def arguments(p: int, m: int, n: int, k: int, *, diagonal: bool = False) -> list[torch.Tensor]:
    core = (k,) if diagonal else (k, k)
    shapes = ((p, n), (m, k), core, (k, n), (m,))
    return [torch.randn(s, requires_grad=True) for s in shapes]


def allocations(work: Callable[[], Any]) -> list[int]:
    """Return what ``work`` allocates, and as negative numbers what it frees, in float32 numbers."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    del result
    return [e.nbytes() // FLOAT_BYTES for e in sorted(events, key=lambda e: e.start_ns())]


def peak(events: list[int]) -> int:
    held = most = 0
    for numbers in events:
        held += numbers
        most = max(most, held)
    return most


def kept(work: Callable[[], torch.Tensor]) -> dict[int, int]:
    """Return the bytes of every storage that autograd saves, by its address."""
    storages = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        work()
    return storages


@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_nothing_is_kept_but_arguments(sizes: tuple[int, int, int, int], diagonal: bool) -> None:
    x, U, Sigma, Vh, bias = arguments(*sizes, diagonal=diagonal)
    found = kept(lambda: sk.usv_matmul(x, U, Sigma, Vh, bias))
    assert set(found) == {t.data_ptr() for t in (x, U, Sigma, Vh)}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_what_others_keep(sizes: tuple[int, int, int, int]) -> None:
    """The comparison of the docstring: three calls of linear keep 2 p k numbers more."""
    p, m, n, k = sizes
    x, U, Sigma, Vh, bias = arguments(*sizes)
    W = torch.randn(m, n, requires_grad=True)
    linear = functional.linear
    dense = kept(lambda: linear(x, W, bias))
    chain = kept(lambda: linear(linear(linear(x, Vh), Sigma), U, bias))
    ours = kept(lambda: sk.usv_matmul(x, U, Sigma, Vh, bias))
    assert sum(dense.values()) == FLOAT_BYTES * (p * n + m * n)
    assert sum(ours.values()) == FLOAT_BYTES * (p * n + k * (m + k + n))
    assert sum(chain.values()) - sum(ours.values()) == FLOAT_BYTES * 2 * p * k


@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_peaks(sizes: tuple[int, int, int, int], diagonal: bool, library: int) -> None:
    p, m, n, k = sizes
    given = arguments(*sizes, diagonal=diagonal)
    forward = allocations(lambda: sk.usv_matmul(*given))
    assert 0 < peak(forward) <= p * m + k * (2 * p + min(m, n)) + library
    y = sk.usv_matmul(*given)
    grad = torch.randn(p, m)
    backward = allocations(lambda: torch.autograd.grad(y, given, grad, retain_graph=True))
    results = sum(t.numel() for t in given)
    assert results < peak(backward) <= results + k * (2 * p + m + n) + library


@pytest.mark.parametrize("p", [3, 300])
def test_nothing_is_as_large_as_the_matrix(p: int, library: int) -> None:
    m = n = 3000
    given = arguments(p, m, n, 4)

    def step() -> list[Any]:
        y = sk.usv_matmul(*given)
        return [y, torch.autograd.grad(y.sum(), given)]

    assert 0 < max(allocations(step)) <= max(max(p, 4) * max(m, n), library)
    dense = torch.randn(m, n)
    # The measure sees a matrix that is formed.
    assert max(allocations(lambda: sk.recompose(*given[1:4]))) == dense.numel()


@pytest.mark.parametrize("shape", [(600,), (30, 20)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_product_out_is_written_in_place(shape: tuple[int, ...], bias: bool, library: int) -> None:
    m, n, k = 90, 130, 24
    x = torch.randn(*shape, n)
    factors = [t.detach() for t in arguments(1, m, n, k)[1:]]
    out = torch.empty(*shape, m)
    chosen = factors if bias else factors[:3]
    found = allocations(lambda: sk.usv_matmul(x, *chosen, out=out))
    assert 0 < peak(found) <= k * (600 + min(m, n)) + library
    torch.testing.assert_close(out, sk.usv_matmul(x, *chosen))


@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_recompose_out_is_written_in_place(batch: tuple[int, ...], diagonal: bool) -> None:
    m, n, k = 90, 130, 24
    core = (k,) if diagonal else (k, k)
    factors = [torch.randn(*batch, *s) for s in ((m, k), core, (k, n))]
    out = torch.empty(*batch, m, n)
    found = allocations(lambda: sk.recompose(*factors, out=out))
    count = torch.Size(batch).numel()
    assert 0 < peak(found) <= count * k * min(m, n)
    torch.testing.assert_close(out, sk.recompose(*factors))
