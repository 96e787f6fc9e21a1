"""Alignment of pairs of layers: which parts of which singular vectors meet, and their diagonals."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.pairs.ports import Pair
from spectral_monitor.step.joined_arrays import consecutive
from torch import Tensor

from spectral_kernels.alignment.prepared import PreparedDiagonals
from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.program.op import Entry, join, mean_of

K = TypeVar("K")


class Part(NamedTuple):
    """Arrays of one dtype in one block that entries of a program fill."""

    entries: list[Entry]
    out: Tensor
    slices: dict[Any, slice]
    """Name -> where its array lies in (each row of) ``out``."""


class Alignments:
    """Alignment diagonals of all pairs of layers.

    Args:
        pairs: those under alignment.
        matrices: those whose SVDs `prepared` gets: all that the pairs name, parts among them.
        k: how many vectors of each take part.
    """

    def __init__(self, pairs: Sequence[Pair], matrices: Sequence[Matrix], k: int) -> None:
        index = {matrix.name: i for i, matrix in enumerate(matrices)}
        self._meetings = [
            [(a, b, index[a.matrix.name], index[b.matrix.name]) for a, b in pair.meetings]
            for pair in pairs
        ]
        self.keys = [pair.key for pair in pairs]
        self._k = k

    def prepared(self, svds: Sequence[SVD]) -> list[Part]:
        """|U^T V'| of every pair, the mean over its meetings, for SVDs that stay in this memory."""
        views = [
            [(a.basis(svds[i]), b.rows(svds[j])) for a, b, i, j in meetings]
            for meetings in self._meetings
        ]
        dtypes = [_widest(x.dtype for pair in own for x in pair) for own in views]
        return [
            self._part([self.keys[i] for i in members], [views[i] for i in members], dtype)
            for dtype, members in by_dtype(dtypes).items()
        ]

    def _part(
        self,
        keys: Sequence[tuple[str, str]],
        views: Sequence[Sequence[tuple[Tensor, Tensor]]],
        dtype: torch.dtype,
    ) -> Part:
        entries: list[Entry] = []
        pairs = [
            (_in_dtype(U, dtype, entries), _in_dtype(Vh, dtype, entries))
            for own in views
            for U, Vh in own
        ]
        diagonals = PreparedDiagonals(pairs, self._k)
        entries.append(diagonals)
        counts = [len(own) for own in views]
        starts = iter(itertools.accumulate(diagonals.counts, initial=0))
        lengths = iter(diagonals.counts)
        places = [list(itertools.islice(starts, count)) for count in counts]
        # As long as the shortest of the meetings.
        shortest = [min(itertools.islice(lengths, count)) for count in counts]
        out = diagonals.out
        if max(counts) > 1:
            mean = mean_of(diagonals.out, places, shortest)
            entries.append(mean)
            out = mean.out
        return Part(entries, out, consecutive(keys, shortest))


def by_dtype(dtypes: Iterable[torch.dtype]) -> dict[torch.dtype, list[int]]:
    """The places of each dtype, in the order of the first of each."""
    groups: dict[torch.dtype, list[int]] = {}
    for i, dtype in enumerate(dtypes):
        groups.setdefault(dtype, []).append(i)
    return groups


def _widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    return torch.float64 if torch.float64 in set(dtypes) else torch.float32


def _in_dtype(x: Tensor, dtype: torch.dtype, entries: list[Entry]) -> Tensor:
    """The array, or another one of ``dtype`` that an entry copies the array to."""
    if x.dtype == dtype:
        return x
    wide = torch.empty(x.shape, dtype=dtype, device=x.device)
    entries.append(join([x], wide.view(-1)))
    return wide
