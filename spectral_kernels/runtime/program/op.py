"""Programs: prepared operations on memory that stays, recorded once and run again and again.

An *entry* is a prepared operation: its ``run`` does the same work on the same memory every time.
Where the compiled module does that work, the entry has ``calls``, the functions of the module with
their jobs; consecutive ones are then one native call, which does not return to Python in between.
On a GPU a program is a sequence of launches, which a CUDA graph may record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from spectral_kernels.runtime import dispatch

__all__ = [
    "Call",
    "Entry",
    "Follow",
    "Program",
    "calls_of",
    "follow",
    "join",
    "mean_of",
    "product_of",
]

Call: TypeAlias = tuple[str, list[tuple[Any, ...]]]
"""Name of a function of the compiled module that takes a list of jobs, and the jobs."""


class Entry(Protocol):
    """A prepared operation, see above."""

    def run(self) -> Any:
        """Do the operation with what its memory holds now."""
        ...


class Program:
    """Entries, run one after the other.

    Args:
        entries: in order. They are kept, and with them the memory that their calls name.
        device: type of device that their memory is on.
    """

    def __init__(self, entries: Sequence[Entry], device: str) -> None:
        module: Any = _module(device)
        self._stages: list[Any] = module.stages(list(entries))

    @property
    def stages(self) -> int:
        """How often Python is returned to in a run: 1 where one native call is all."""
        return len(self._stages)

    def run(self) -> None:
        """Run all entries."""
        with torch.no_grad():
            for stage in self._stages:
                stage()


class Follow(NamedTuple):
    """Memory ``kept`` takes the numbers of ``now``, of the same shape, unless a code says no."""

    now: Tensor
    kept: Tensor
    code: Tensor
    """() number: below 0 where the numbers mean nothing."""


def join(parts: Sequence[Tensor], out: Tensor) -> Entry:
    """An entry that writes all parts, one after the other, to ``out`` (total,) in its dtype.

    Args:
        parts: of any shapes and of float32, float64, int64 or bool.
        out: float32 or float64, contiguous.
    """
    entry: Entry = _module(out.device.type).Join(list(parts), out)
    return entry


def mean_of(block: Tensor, starts: Sequence[Sequence[int]], lengths: Sequence[int]) -> Any:
    """An entry that fills its ``out`` (total,) with means of stretches of ``block``.

    Args:
        block: (n,) float32 or float64.
        starts: for each mean where the stretches begin that it is taken over, at least one.
        lengths: of the stretches of each.
    """
    return _module(block.device.type).Mean(block, [list(x) for x in starts], list(lengths))


def product_of(a: Tensor, b: Tensor, out: Tensor) -> Entry:
    """An entry that fills ``out`` with the products of ``a`` and ``b``: all three contiguous, of
    one shape and of float32 or float64."""
    entry: Entry = _module(a.device.type).Product(a, b, out)
    return entry


def calls_of(entries: Sequence[Entry]) -> list[Call] | None:
    """The calls of all entries; None where one has none."""
    together: list[Call] = []
    for entry in entries:
        calls: list[Call] | None = getattr(entry, "calls", None)
        if calls is None:
            return None
        together += calls
    return together


def follow(pairs: Sequence[Follow]) -> Entry:
    """An entry that copies what 2-D arrays hold now into the memory that follows them."""
    entry: Entry = _module(pairs[0].now.device.type).Following(list(pairs))
    return entry


def _module(device: str) -> Any:
    return dispatch.backend("runtime.program", device)
