"""Plain torch, on any device: every entry is run by Python, and those between kernels are here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def stages(entries: list[Any]) -> list[Callable[[], Any]]:
    """Return what a run calls, in order."""
    return [entry.run for entry in entries]


class Join:
    """See ``op.join``."""

    def __init__(self, parts: list[Tensor], out: Tensor) -> None:
        self.parts, self.out = parts, out

    def run(self) -> None:
        """Write all parts."""
        if len({part.dtype for part in self.parts}) == 1:
            self.out.copy_(torch.cat([part.reshape(-1) for part in self.parts]))
            return
        at = 0
        for part in self.parts:
            self.out[at : at + part.numel()].copy_(part.reshape(-1))
            at += part.numel()


class Mean:
    """See ``op.mean_of``."""

    def __init__(self, block: Tensor, starts: list[list[int]], lengths: list[int]) -> None:
        self.block, self.starts, self.lengths = block, starts, lengths
        self.out = block.new_zeros(sum(lengths))
        self._prepare()

    def _prepare(self) -> None:
        """Index tables: means over one number of stretches are taken in one call."""
        places: dict[int, list[Tensor]] = {}
        rows: dict[int, list[Tensor]] = {}
        end = 0
        for starts, length in zip(self.starts, self.lengths, strict=True):
            along = torch.arange(length)
            places.setdefault(len(starts), []).append(along[:, None] + torch.tensor(starts))
            rows.setdefault(len(starts), []).append(along + end)
            end += length
        device = self.block.device
        self._groups = [torch.cat(indices).to(device) for indices in places.values()]
        order = [row for group in rows.values() for row in group]
        self._order = torch.cat(order).argsort().to(device) if order else None

    def run(self) -> None:
        """Take the means, in float64."""
        if self._order is not None:
            means = [self.block[i].mean(dim=1, dtype=torch.float64) for i in self._groups]
            self.out.copy_(torch.cat(means)[self._order])


class Product:
    """See ``op.product_of``."""

    def __init__(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        self.a, self.b, self.out = a, b, out

    def run(self) -> None:
        """Multiply."""
        torch.mul(self.a, self.b, out=self.out)


class Following:
    """See ``op.follow``."""

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs

    def run(self) -> None:
        """Copy the sources where the codes allow it; the host reads no number."""
        for now, kept, code in self.pairs:
            kept.copy_(torch.where(code >= 0, now, kept))
