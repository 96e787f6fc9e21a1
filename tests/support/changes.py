"""Models that change in tests."""

from __future__ import annotations

from typing import Any

import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor

from tests.support.monitored import due


def moving(steps: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Weights of several steps that drift."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(9, 6, generator=generator),
               "b": torch.randn(5, 9, generator=generator)}  # fmt: skip
    made = []
    for _ in range(steps):
        made.append({name: x.clone() for name, x in weights.items()})
        for name in weights:
            noise = torch.randn(weights[name].shape, generator=generator)
            weights[name] = weights[name] + 0.02 * noise
    return made


def follow(trajectory: list[dict[str, Tensor]], **options: Any) -> list[SpectralFrame]:
    weights = dict(trajectory[0])
    watch = SpectralMonitor(weights, **{"every": 1, "method": "exact", **options})
    frames = []
    for state in trajectory:
        weights.update(state)
        frames.append(due(watch.step()))
    watch.close()
    return frames
