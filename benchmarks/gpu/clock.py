"""How a run on a device is timed: events, an L2 cache that holds nothing of the inputs, medians.

Before every timed run a buffer larger than the L2 cache is written, and the device sleeps while the
host enqueues the run, so that what is measured is the device's time and no launch latency, unless
the run itself waits for the device, which then counts, as it does for whoever calls it. A CPU has
neither: there the same code runs with a wall clock, which only shows that a benchmark works.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# Cycles of a clock near 1.7 GHz: about half a millisecond, longer than the host takes to enqueue.
_SLEEP_CYCLES = 1_000_000
_L2_FACTOR = 2
_MOST_ROUNDS, _SECONDS = 50, 1.0


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of a contender's runs."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


class Clock:
    """Times runs on one device, "cuda" or "cpu"."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._flush: torch.Tensor | None = None
        if device == "cuda":
            l2 = int(torch.cuda.get_device_properties(0).L2_cache_size)
            self._flush = torch.empty(_L2_FACTOR * l2, dtype=torch.int8, device=device)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def time(self, run: Callable[[], Any], prepare: Callable[[], None] | None = None) -> Timing:
        """Return the timing of ``run``; ``prepare`` goes before each, outside of the time."""
        times = [self._once(run, prepare) for _ in range(3)][1:]
        while len(times) < _MOST_ROUNDS and sum(times) < 1e3 * _SECONDS:
            times.append(self._once(run, prepare))
        low, median, high = statistics.quantiles(times, n=4)
        return Timing(median, low, high, len(times))

    def _once(self, run: Callable[[], Any], prepare: Callable[[], None] | None) -> float:
        """Milliseconds of one run."""
        if prepare:
            prepare()
        if self._flush is None:
            started = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - started)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda._sleep(_SLEEP_CYCLES)
        first.record()
        run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)
