"""What a runner asks of CUDA, in which order, on a stand-in for ``torch.cuda``."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from spectral_monitor.device.runner import Runner
from spectral_monitor.device.streams import CudaStreams
from torch import Tensor

DEVICE = torch.device("cuda", 0)


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self._cuda, self.name = cuda, name

    def wait_event(self, event: Event) -> None:
        self._cuda.log.append(f"{self.name} waits for {event.name}")


class Event:
    def __init__(self, cuda: Cuda, enable_timing: bool) -> None:
        self._cuda, self.name, self.enable_timing = cuda, "", enable_timing
        self.at = 0.0

    def record(self, stream: Stream) -> None:
        cuda = self._cuda
        self.name, self.at = f"event {len(cuda.events)}", 1000.0 * len(cuda.events)
        cuda.events.append(self)
        cuda.log.append(f"{stream.name}: {self.name}")

    def query(self) -> bool:
        return self._cuda.arrived

    def synchronize(self) -> None:
        self._cuda.log.append(f"the host waits for {self.name}")

    def elapsed_time(self, later: Event) -> float:
        assert self.enable_timing
        assert later.enable_timing
        return later.at - self.at


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def replay(self) -> None:
        self._cuda.log.append(f"{self._cuda.current[-1].name}: graph")


class Cuda:
    """In the place of ``torch.cuda``; calls that the real one would not take are errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.events: list[Event] = []
        self.arrived = False
        self.refuses = False
        self.main, self.side = Stream(self, "main"), Stream(self, "side")
        self.alone = Stream(self, "alone")
        self.current = [self.main]
        # Memory pools of captures that torch takes to be going on.
        self.capturing: set[object] = set()
        real, empty, zeros = torch.cuda.graph, torch.empty, torch.zeros
        made = iter((self.side, self.alone))

        @contextlib.contextmanager
        def graph(*args: Any, **options: Any) -> Iterator[None]:
            given = inspect.signature(real).bind(*args, **options).arguments
            assert given["stream"] is self.alone
            assert given["capture_error_mode"] == "thread_local"
            self.log.append("capture")
            pool = given.get("pool")
            self.capturing |= {pool, "generator"}
            self.current.append(self.alone)
            yield
            if self.refuses and pool is not None:
                # As torch does, which leaves everything as it is.
                raise RuntimeError("operation failed due to a previous error during capture")
            self.capturing -= {pool, "generator"}
            self.current.pop()

        def pinned(*size: int, pin_memory: bool, **options: Any) -> Tensor:
            assert pin_memory
            return empty(*size, **options)

        for name, stand_in in {
            "Stream": lambda device: next(made),
            "graph_pool_handle": lambda: "pool",
            "Event": lambda enable_timing=False: Event(self, enable_timing),
            "CUDAGraph": lambda: Graph(self),
            "graph": graph,
            "stream": self.on,
            "device": lambda device: contextlib.nullcontext(),
            "current_stream": lambda device: self.current[-1],
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr("spectral_monitor.device.streams.torch.empty", pinned)
        monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
        # A build without CUDA has a class in the place of each.
        monkeypatch.setattr(
            torch._C, "_cuda_endAllocateToPool", lambda index, pool: self.capturing.remove(pool)
        )
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: None)

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before = list(self.current)
        self.current.append(stream)
        try:
            yield
        finally:
            self.current[:] = before


class Program:
    """Three numbers."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.block = torch.arange(3.0, dtype=torch.float64)

    def _note(self, what: str) -> None:
        self._cuda.log.append(f"{self._cuda.current[-1].name}: {what}")

    def read(self, scalars: Any) -> None:
        self._note("snapshot")

    def solve(self, which: Any) -> None:
        self._note(f"solve {list(which)}")

    def compute(self) -> None:
        self._note("compute")


def test_the_order_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    runner = Runner(Program(cuda), CudaStreams(DEVICE))
    runner.step([], [])
    # Launch by launch at first.
    assert cuda.log == [
        "main: event 0", "main: snapshot", "main: event 1",
        "side waits for event 1", "side: event 2", "side: compute", "side: event 3",
    ]  # fmt: skip
    cuda.log.clear()
    runner.step([], [4])
    assert cuda.log == [
        "capture", "alone: compute",
        "main waits for event 3", "main: event 4", "main: snapshot", "main: event 5",
        "side waits for event 5", "side: event 6", "side: solve [4]", "side: graph",
        "side: event 7",
    ]  # fmt: skip
    cuda.log.clear()
    reading = runner.step([], [])
    assert cuda.log == [
        "main waits for event 7", "main: event 8", "main: snapshot", "main: event 9",
        "side waits for event 9", "side: event 10", "side: graph", "side: event 11",
    ]  # fmt: skip
    cuda.log.clear()
    assert not reading.arrived
    assert reading.numbers().tolist() == [0.0, 1.0, 2.0]
    assert cuda.log == ["the host waits for event 11"]
    # From event 8 to 9 and from 10 to 11, which are a second apart here.
    assert reading.seconds() == 2.0
    assert reading.arrived
    runner.wait()
    assert cuda.log == ["the host waits for event 11"] * 2


def test_memory_is_given_back_when_the_device_is_done_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(monkeypatch)

    class Dropped(Program):
        def __del__(self) -> None:
            cuda.log.append("memory is free")

    runner = Runner(Dropped(cuda), CudaStreams(DEVICE))
    runner.step([], [])
    cuda.log.clear()
    del runner
    assert cuda.log == ["the host waits for event 3", "memory is free"]


def test_numbers_that_have_arrived_are_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    program = Program(cuda)
    runner = Runner(program, CudaStreams(DEVICE))
    readings = []
    for step in range(4):
        program.block.fill_(step)
        readings.append(runner.step([], []))
        if step == 1:
            # Its room is free for the next step now.
            readings[0].numbers()
    assert [reading.numbers().tolist() for reading in readings] == [[step] * 3 for step in range(4)]


def test_a_capture_that_fails_is_told_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    cuda.refuses = True
    runner = Runner(Program(cuda), CudaStreams(DEVICE))
    for _ in range(3):
        runner.step([], [])
    assert runner.refusal == (
        "RuntimeError: operation failed due to a previous error during capture"
    )
    # Once the program, and once what makes torch's generator of random numbers whole again.
    assert cuda.log.count("capture") == 2
    assert cuda.log.count("side: compute") == 3
    assert cuda.log[-2] == "side: compute"
    assert cuda.current == [cuda.main]
    assert not cuda.capturing


def test_an_error_of_the_work_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    streams = CudaStreams(DEVICE)

    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        streams.recorded(work)
    assert cuda.current == [cuda.main]
    assert not cuda.capturing
