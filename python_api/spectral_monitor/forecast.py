"""What a measurement will take, before there was one: a timed dry run of the method.

Random matrices stand for those of the model, at most four of each shape; for large shapes smaller
ones of the same proportions, whose time is scaled by m n^2 (m n for leading triplets alone). They
are measured as the model's will be, between them a change of 1e-3 of each, and the shorter of two
times counts. Alignment and recording are not in it. Within a factor of two or three: real spectra
and real changes are others, and so is what else the machine does.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from spectral_monitor.cadence import every_for
from spectral_monitor.model.matrix import Matrix
from torch import Tensor

_COPIES = 4
_CHANGE = 1e-3
# Longer short sides may have another method (see `step.tracked_solver`): not scaled below.
_SHORT, _VOLUME = 400, 400 * 400 * 1600
_WORTH_A_PROPOSAL = 0.02
_FEW = 32


class Stepped(Protocol):
    """A monitor."""

    def step(self) -> object:
        """Measure."""
        ...


class Forecast(NamedTuple):
    """Seconds of one measurement, and, where that is long, of one with fewer triplets."""

    seconds: float
    with_few: float | None

    def described(self, overhead: float | None) -> str:
        """Lines for `explain`."""
        lines = (
            f"predicted by a dry run on random matrices of these shapes: a measurement takes about "
            f"{_ms(self.seconds)}"
        )
        budget = 0.05 if overhead is None else overhead
        examples = ", ".join(
            f"every {_nth(every_for(self.seconds, training, budget))} of {_ms(training)}"
            for training in (0.01, 0.1, 1.0)
        )
        if overhead is not None:
            lines += f"; {budget:.3g} of the time allows {examples}"
        else:
            lines += f"; overhead={budget:.3g} in place of every would allow {examples}"
        if self.with_few is not None and self.with_few < 0.7 * self.seconds:
            lines += f"\ncheaper: k={_FEW}, leading triplets alone, about {_ms(self.with_few)}"
        return lines


def forecast(
    matrices: Sequence[Matrix], k: int | None, make: Callable[[Mapping[str, Tensor], Any], Stepped]
) -> Forecast:
    """Time a dry run.

    Args:
        matrices: all that is decomposed.
        k: that of the monitor.
        make: from tensors by name, and ``k``, a monitor of the same options.
    """
    shapes = Counter((min(m.core), max(m.core), m.result_bytes) for m in matrices)
    seconds = _measured(shapes, k, make)
    few = None
    if seconds > _WORTH_A_PROPOSAL and (k is None or k > _FEW):
        few = _measured(shapes, _FEW, make)
    return Forecast(seconds, few)


def _measured(
    shapes: Mapping[tuple[int, int, int], int],
    k: int | None,
    make: Callable[[Mapping[str, Tensor], Any], Stepped],
) -> float:
    total = 0.0
    for (n, m, size), count in shapes.items():
        copies = min(count, _COPIES)
        short, long = _smaller(n, m)
        few = k is not None and k < short
        scale = (n * m) / (short * long) if few else (n * n * m) / (short * short * long)
        dtype = torch.float64 if size == 8 else torch.float32
        taken = _timed(short, long, copies, dtype, k, make)
        total += taken * scale * count / copies
    return total


def _timed(n: int, m: int, copies: int, dtype: torch.dtype, k: Any, make: Any) -> float:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(m, n, dtype=dtype, generator=generator) / math.sqrt(m)

    weights = {f"w{i}": draw() for i in range(copies)}
    monitor = make(weights, None if k is None else min(k, n))
    times = []
    for _ in range(3):
        for tensor in weights.values():
            tensor.add_(draw(), alpha=_CHANGE)
        begin = time.perf_counter()
        monitor.step()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _smaller(n: int, m: int) -> tuple[int, int]:
    """A shape of the same proportions that is solved in a fraction of a second."""
    if n <= _SHORT or n * n * m <= _VOLUME:
        return n, min(m, max(n, _VOLUME // (n * n)))
    return _SHORT, min(m * _SHORT // n, 4 * _SHORT)


def _ms(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _nth(every: int) -> str:
    return "training step" if every == 1 else f"{every} training steps"
