"""Adapter to the compiled module: consecutive entries with calls are one native program."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.runtime.numerics import DTYPE_CODES
from spectral_kernels.runtime.program import torch_backend
from spectral_kernels.runtime.program.op import Call

_TYPES = {torch.float32: 2, torch.float64: 3, torch.int64: 4, torch.bool: 5}


def stages(entries: list[Any]) -> list[Callable[[], Any]]:
    """Return what a run calls, in order: a native program for each stretch of compiled entries."""
    runs: list[Callable[[], Any]] = []
    for is_compiled, group in itertools.groupby(entries, lambda x: _calls(x) is not None):
        stretch = list(group)
        runs += [_Recorded(stretch).run] if is_compiled else [x.run for x in stretch]
    return runs


def _calls(entry: Any) -> list[Call] | None:
    return getattr(entry, "calls", None)


class _Recorded:
    def __init__(self, entries: list[Any]) -> None:
        # Jobs are addresses in memory that the entries keep.
        self._entries = entries
        self._program = _C.Program()
        for entry in entries:
            for name, jobs in entry.calls:
                if jobs:
                    self._program.add(name, jobs)

    def run(self) -> None:
        self._program.run(torch.get_num_threads())


class Join(torch_backend.Join):
    """See ``op.join``."""

    def __init__(self, parts: list[Tensor], out: Tensor) -> None:
        super().__init__(parts, out)
        jobs, at = [], out.data_ptr()
        for part in parts:
            jobs += _copies(part, at, out.dtype)
            at += part.numel() * out.element_size()
        self.calls: list[Call] = [("copy", jobs)]


def _copies(part: Tensor, address: int, dtype: torch.dtype) -> list[tuple[int, ...]]:
    if not part.numel():
        return []
    # Of an array that is not contiguous this is a view where it has less than two dimensions.
    rows = part if part.dim() == 2 and not part.is_contiguous() else part.reshape(1, -1)
    if rows.data_ptr() != part.data_ptr():
        raise ValueError(f"part of shape {tuple(part.shape)} is neither contiguous nor 2-D")
    source = (part.data_ptr(), _TYPES[part.dtype], *rows.stride())
    return [(*source, address, _TYPES[dtype], rows.shape[1], 1, *rows.shape, 0)]


class Mean(torch_backend.Mean):
    """See ``op.mean_of``."""

    def _prepare(self) -> None:
        starts = [torch.tensor(x) for x in self.starts]
        self._starts = starts
        code, at, jobs = DTYPE_CODES[self.block.dtype], self.out.data_ptr(), []
        for where, length in zip(starts, self.lengths, strict=True):
            source = (self.block.data_ptr(), code, where.data_ptr(), len(where))
            jobs.append((*source, length, at))
            at += length * self.out.element_size()
        self.calls: list[Call] = [("mean", jobs)]

    def run(self) -> None:
        """Take the means, in float64."""
        for name, jobs in self.calls:
            _run(name, jobs)


class Product(torch_backend.Product):
    """See ``op.product_of``."""

    def __init__(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        super().__init__(a, b, out)
        job = (a.data_ptr(), b.data_ptr(), DTYPE_CODES[a.dtype], a.numel(), out.data_ptr())
        self.calls: list[Call] = [("product", [job])]


class Following(torch_backend.Following):
    """See ``op.follow``."""

    def __init__(self, pairs: list[Any]) -> None:
        super().__init__(pairs)
        self.calls: list[Call] | None = None
        if any(code.dtype != torch.float64 for _, _, code in pairs):
            return
        jobs: list[tuple[Any, ...]] = []
        for now, kept, code in pairs:
            ends = [(x.data_ptr(), _TYPES[x.dtype], *x.stride()) for x in (now, kept)]
            jobs.append((*ends[0], *ends[1], *now.shape, code.data_ptr()))
        self.calls = [("copy", jobs)]


def _run(name: str, jobs: list[tuple[Any, ...]]) -> None:
    function: Callable[..., None] = getattr(_C, name)
    function(jobs, torch.get_num_threads())
