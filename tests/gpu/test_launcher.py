"""What only a device can tell of the launcher: streams, graphs, threads, NVRTC's code."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectral_kernels.rank import torch_backend
from spectral_kernels.runtime.cuda import driver, image, launcher
from spectral_kernels.runtime.cuda.on_device import DeviceLauncher
from spectral_kernels.svd import cuda_values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(launcher.refusal() is not None, reason=str(launcher.refusal())),
]


Solved = tuple[list[Tensor], list[Tensor]]


def matrices() -> list[Tensor]:
    """Two shapes, two launches; both fit the shared memory of a block."""
    return [torch.rand(50, 64, 64, device="cuda"), torch.rand(7, 12, 30, device="cuda").double()]


SHAPES = [(64, 64), (12, 30)]


def solve(given: list[Tensor]) -> Solved:
    return cuda_values.svdvals_with_tables(given, -1.0)


def check(solved: Solved, given: list[Tensor]) -> None:
    values, tables = solved
    for S, A in zip(values, given, strict=True):
        want = torch.linalg.svdvals(A.double())
        error = (S - want).abs().amax(dim=-1) / want[..., 0]
        assert error.max() <= (8 + 64) * torch.finfo(A.dtype).eps
    for got, want in zip(tables, torch_backend.summary_tables(values, SHAPES, -1.0), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


def test_code_compiled_at_run_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    monkeypatch.setattr(image, "IMAGES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = matrices()
    with launcher.installed(DeviceLauncher(driver.driver())):
        check(solve(given), given)
    assert list((tmp_path / "spectral_kernels").glob("bidiagonal-*-nvrtc*.cubin"))


def test_on_the_current_stream() -> None:
    given = matrices()
    check(solve(given), given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long enough that a launch on another stream would read the values before they change.
        torch.cuda._sleep(50_000_000)
        for x in given:
            x.mul_(3.0)
        found = solve(given)
    torch.cuda.current_stream().wait_stream(stream)
    check(found, given)


def test_captured_and_replayed() -> None:
    given = matrices()
    solve(given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = solve(given)
    for x in given:
        x.uniform_()
    graph.replay()
    check(found, given)


def test_nothing_synchronises() -> None:
    given = matrices()
    solve(given)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        solve(given)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_from_a_new_thread() -> None:
    given = matrices()
    found: list[Solved] = []
    fresh = DeviceLauncher(driver.driver())

    def work() -> None:
        found.append(solve(given))

    with launcher.installed(fresh):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    check(found[0], given)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_on_the_device_of_the_tensors() -> None:
    given = [x.to("cuda:1") for x in matrices()]
    assert torch.cuda.current_device() == 0
    found = solve(given)
    assert found[0][0].device.index == 1
    check(found, given)


def test_limits_are_those_of_the_device() -> None:
    known = torch.cuda.get_device_properties(torch.cuda.current_device())
    limits = launcher.limits(torch.device("cuda"))
    assert limits.multiprocessors == known.multi_processor_count
    assert limits.shared_bytes > 48 << 10


def test_code_is_loaded_while_a_graph_is_captured() -> None:
    given = matrices()
    fresh, graph = DeviceLauncher(driver.driver()), torch.cuda.CUDAGraph()
    with launcher.installed(fresh), torch.cuda.graph(graph):
        found = solve(given)
    graph.replay()
    check(found, given)
