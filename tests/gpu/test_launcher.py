"""What only a device can tell of the launcher: streams, graphs, threads, NVRTC's code."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectral_kernels.rank import cuda_backend, torch_backend
from spectral_kernels.runtime.cuda import driver, image, launcher
from spectral_kernels.runtime.cuda.on_device import DeviceLauncher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(launcher.refusal() is not None, reason=str(launcher.refusal())),
]


def spectra() -> list[Tensor]:
    return [torch.rand(50, 64, device="cuda"), torch.rand(7, 12, device="cuda").double()]


SHAPES = [(64, 64), (12, 30)]


def tables(values: list[Tensor]) -> list[Tensor]:
    return cuda_backend.summary_tables(values, SHAPES, -1.0)


def check(found: list[Tensor], values: list[Tensor]) -> None:
    for got, want in zip(found, torch_backend.summary_tables(values, SHAPES, -1.0), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


def test_code_compiled_at_run_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    monkeypatch.setattr(image, "IMAGES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    values = spectra()
    with launcher.installed(DeviceLauncher(driver.driver())):
        check(tables(values), values)
    assert list((tmp_path / "spectral_kernels").glob("summary-*-nvrtc*.cubin"))


def test_on_the_current_stream() -> None:
    values = spectra()
    check(tables(values), values)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long enough that a launch on another stream would read the values before they change.
        torch.cuda._sleep(50_000_000)
        for x in values:
            x.mul_(3.0)
        found = tables(values)
    torch.cuda.current_stream().wait_stream(stream)
    check(found, values)


def test_captured_and_replayed() -> None:
    values = spectra()
    bounds = [1e-3 * torch.rand_like(x, dtype=torch.float64) for x in values]
    norms = [b.norm(dim=-1) for b in bounds]
    prepared = cuda_backend.BoundedTables(values, bounds, norms, SHAPES)
    prepared.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block = prepared.run()
    for x in values:
        x.uniform_()
    graph.replay()
    want = torch_backend.BoundedTables(values, bounds, norms, SHAPES).run()
    torch.testing.assert_close(block, want, rtol=1e-11, atol=1e-14)


def test_nothing_synchronises() -> None:
    values = spectra()
    tables(values)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tables(values)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_from_a_new_thread() -> None:
    values = spectra()
    found: list[Tensor] = []
    fresh = DeviceLauncher(driver.driver())

    def work() -> None:
        found.extend(tables(values))

    with launcher.installed(fresh):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    check(found, values)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_on_the_device_of_the_tensors() -> None:
    values = [x.to("cuda:1") for x in spectra()]
    assert torch.cuda.current_device() == 0
    found = tables(values)
    assert found[0].device.index == 1
    check(found, values)


def test_limits_are_those_of_the_device() -> None:
    known = torch.cuda.get_device_properties(torch.cuda.current_device())
    limits = launcher.limits(torch.device("cuda"))
    assert limits.multiprocessors == known.multi_processor_count
    assert limits.shared_bytes > 48 << 10


def test_code_is_loaded_while_a_graph_is_captured() -> None:
    values = spectra()
    fresh, graph = DeviceLauncher(driver.driver()), torch.cuda.CUDAGraph()
    with launcher.installed(fresh), torch.cuda.graph(graph):
        found = tables(values)
    graph.replay()
    check(found, values)
