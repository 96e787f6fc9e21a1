"""What the monitor costs a training step: a Transformer of GPT-2 small's size, with and without.

Both run in turn, some steps each, again and again; time is the wall clock around steps that end
with a synchronisation, so that work on a side stream counts where it delays training.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import spectral_kernels as sk
from benchmarks.transformer import Transformer

LAYERS, D, HEADS, TOKENS, LENGTH, BATCH = 12, 768, 12, 50_257, 1024, 8
_STEPS, _ROUNDS = 10, 7
TARGET = 0.01


class _Training:
    """Steps of AdamW in bfloat16 autocast on random tokens."""

    def __init__(self, device: str, *, tiny: bool) -> None:
        torch.manual_seed(0)
        layers, d, heads, tokens = (2, 32, 2, 64) if tiny else (LAYERS, D, HEADS, TOKENS)
        self.model = Transformer(layers, d, heads, tokens).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, fused=not tiny)
        shape = (2, 16) if tiny else (BATCH, LENGTH + 1)
        self.batch = torch.randint(tokens, shape, device=device)
        self.device = device

    def step(self) -> Tensor:
        """One training step."""
        with torch.autocast(self.device, torch.bfloat16):
            logits = self.model(self.batch[:, :-1])
            loss: Tensor = cross_entropy(logits.flatten(0, 1), self.batch[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def measure(device: str, *, tiny: bool) -> list[dict[str, Any]]:
    """Return one record for each way to monitor: times of a step, and the share of the monitor."""
    training = _Training(device, tiny=tiny)
    options: dict[str, dict[str, Any]] = {
        "tracked, k = 32": {"k": 8 if tiny else 32},
        "tracked, all values": {},
    }
    return [_record(name, training, chosen, tiny=tiny) for name, chosen in options.items()]


def _record(
    name: str, training: _Training, options: dict[str, Any], *, tiny: bool
) -> dict[str, Any]:
    monitor = sk.SpectralMonitor(
        nn.ModuleDict({"blocks": training.model.blocks}), **{"every": 1, **options}
    )
    for _ in range(3):
        training.step()
        monitor.step()
    plain, watched = [], []
    for _ in range(2 if tiny else _ROUNDS):
        plain.append(_per_step_ms(training, None, tiny=tiny))
        watched.append(_per_step_ms(training, monitor, tiny=tiny))
    monitor.close()
    without, with_it = statistics.median(plain), statistics.median(watched)
    share = with_it / without - 1.0
    told = f"the monitor with k = 32 at every step under {TARGET:.0%} of a training step"
    targets = [{"target": told, "measured": share, "holds": share < TARGET}]
    return {
        "operation": "monitor in training",
        "case": name,
        "step_ms": without,
        "step_with_monitor_ms": with_it,
        "share": share,
        "resolves": monitor.resolves,
        "targets": targets if "k" in options else [],
    }


def _per_step_ms(training: _Training, monitor: Any, *, tiny: bool) -> float:
    count = 2 if tiny else _STEPS
    _synchronize(training.device)
    started = time.perf_counter()
    for _ in range(count):
        training.step()
        if monitor is not None:
            monitor.step()
    _synchronize(training.device)
    return 1e3 * (time.perf_counter() - started) / count


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
