"""CUDA graphs of work, and torch as it was where one cannot be made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from spectral_kernels.runtime.torch_internals import release_pool

CAPTURED = (
    "SpectralMonitor.step was called while a CUDA graph is captured: nothing is measured, neither "
    "now nor when the graph is replayed; call it after the replay"
)


def is_being_captured() -> bool:
    """Whether the caller is recording the current stream, of which nothing may be asked then."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()


def captured(work: Callable[[], None], device: torch.device, stream: Any) -> Callable[[], None]:
    """Record work as a CUDA graph, without doing it; what comes back does it.

    Args:
        work: issues to the current stream, and asks the device for nothing.
        device: the current one.
        stream: of this device, on which no work is ever done. What cuBLAS keeps for a stream is
            then made while it is recorded, in the graph's own memory: what it keeps for others
            may be freed under a graph (``torch.compile`` does so when it records its own).

    Raises:
        RuntimeError: the work cannot be recorded. Streams, memory and random numbers are then
            what they were.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # torch leaves the stream of a capture current where CUDA refuses to end it.
    with torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            _record(graph, work, stream, pool)
        except Exception:
            _end(device, stream, pool)
            raise
    replay: Callable[[], None] = graph.replay
    return replay


def _record(graph: Any, work: Callable[[], object], stream: Any, pool: Any = None) -> None:
    # The stricter mode of capture fails where another thread, of a data loader say, pins memory
    # meanwhile.
    mode = "thread_local"
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=mode):
        work()


def _end(device: torch.device, stream: Any, pool: Any) -> None:
    """Have torch's allocator and generator of random numbers know of the end of a capture.

    They are not told where CUDA refuses to end it: memory that several streams use would not be
    freed any more, and the next random number of training would be an error.
    """
    release_pool(device, pool)
    # There is no call for the generator: the end of any other capture tells it.
    with contextlib.suppress(Exception), torch.cuda.stream(torch.cuda.current_stream(device)):
        something = torch.zeros(1, device=device)
        _record(torch.cuda.CUDAGraph(), something.zero_, stream)
