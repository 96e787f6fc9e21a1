"""What the hardware allows: measured ceilings, and the time below which no version can run.

A floor is the larger of bytes over bandwidth (each input read once, each output written once) and
operations over the rate of the unit that does them. Both rates are measured on the device at hand,
not taken from a data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu.clock import Clock

_RATES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Work:
    """The least a case must do: bytes moved, and operations at the rate of one type."""

    moved_bytes: float
    flops: float
    rate: str = "fp32"


@dataclass(frozen=True)
class Ceilings:
    """Bytes and operations per second."""

    bytes_per_s: float
    flops_per_s: dict[str, float]

    def floor_ms(self, work: Work) -> float:
        """Return the least time of this work."""
        moving = work.moved_bytes / self.bytes_per_s
        return 1e3 * max(moving, work.flops / self.flops_per_s[work.rate])


def measure(clock: Clock, *, tiny: bool) -> Ceilings:
    """Measure a large copy, and large matrix products of random numbers, TF32 off."""
    size = 2**20 if tiny else 2**30
    source = torch.randn(size // 4, device=clock.device)
    target = torch.empty_like(source)
    copy_ms = clock.time(lambda: target.copy_(source)).median_ms
    side = 64 if tiny else 8192
    flops = {}
    for name, dtype in _RATES.items():
        A, B = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
        C = torch.empty_like(A)

        def product(A: torch.Tensor = A, B: torch.Tensor = B, C: torch.Tensor = C) -> None:
            torch.mm(A, B, out=C)

        flops[name] = 2.0 * side**3 / (1e-3 * clock.time(product).median_ms)
    return Ceilings(2.0 * size / (1e-3 * copy_ms), flops)
