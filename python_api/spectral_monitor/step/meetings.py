"""The alignments of a step: which parts of which singular vectors meet."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from spectral_monitor.model.registry import Matrix
from spectral_monitor.pairs.ports import Pair
from spectral_monitor.step.frame import Array
from spectral_monitor.step.rows import to_arrays
from spectral_monitor.step.views import ArrayViews, consecutive
from torch import Tensor

from spectral_kernels.alignment.op import alignment_diagonals_list
from spectral_kernels.alignment.prepared import PreparedDiagonals
from spectral_kernels.entry.results import SVD

__all__ = ["Meetings", "PreparedMeetings"]


class Meetings:
    """Alignment diagonals of all pairs of layers.

    Args:
        pairs: those under alignment.
        matrices: those whose SVDs `alignment` gets: all that the pairs name, parts among them.
        k: how many vectors of each take part.
        in_place: whether the SVDs are in the same tensors at every step, as a tracker's are, and
            then come in the same list: what can be prepared is prepared once.
    """

    def __init__(
        self, pairs: Sequence[Pair], matrices: Sequence[Matrix], k: int, *, in_place: bool
    ) -> None:
        index = {matrix.name: i for i, matrix in enumerate(matrices)}
        self._meetings = [
            (first, second, index[first.matrix.name], index[second.matrix.name])
            for pair in pairs
            for first, second in pair.meetings
        ]
        self._keys = [pair.key for pair in pairs]
        self._counts = [len(pair.meetings) for pair in pairs]
        self._k = k
        self._in_place = in_place
        self._svds: Sequence[SVD] = ()
        self._prepared: PreparedMeetings | None = None

    def alignment(self, svds: Sequence[SVD]) -> Mapping[tuple[str, str], Array]:
        """(name, name of the next layer) -> diagonal of |U^T V'|, of the step's SVDs."""
        if svds is not self._svds:
            self._prepared = self.prepared(svds) if self._in_place else None
            self._svds = svds if self._prepared is not None else ()
        if self._prepared is not None:
            block = self._prepared.run().to("cpu", copy=True).numpy()
            return ArrayViews(block, self._prepared.slices)
        if not self._keys:
            return {}
        diagonals = alignment_diagonals_list([_one_dtype(*x) for x in self._views(svds)], self._k)
        parts = iter(to_arrays(diagonals))
        return {
            key: _mean(list(itertools.islice(parts, count)))
            for key, count in zip(self._keys, self._counts, strict=True)
        }

    def prepared(self, svds: Sequence[SVD]) -> PreparedMeetings | None:
        """All diagonals of SVDs in these places; None where there is no pair, or where dtypes
        differ: a copy in another one would be that of this step for ever.
        """
        views = self._views(svds)
        if len({x.dtype for pair in views for x in pair}) != 1:
            return None
        return PreparedMeetings(PreparedDiagonals(views, self._k), self._keys, self._counts)

    def _views(self, svds: Sequence[SVD]) -> list[tuple[Tensor, Tensor]]:
        return [(a.basis(svds[i]), b.rows(svds[j])) for a, b, i, j in self._meetings]


class PreparedMeetings:
    """The diagonals of pairs whose memory stays, each the mean over the meetings of its pair.

    Args:
        diagonals: of all meetings, in the order of the pairs.
        keys: of the pairs.
        counts: meetings of each.
    """

    def __init__(
        self, diagonals: PreparedDiagonals, keys: Sequence[tuple[str, str]], counts: Sequence[int]
    ) -> None:
        self._diagonals = diagonals
        ends = itertools.accumulate(diagonals.counts, initial=0)
        starts = iter(list(itertools.pairwise(ends)))
        # Of each pair, where its meetings are in the block of all; as long as the shortest.
        members = [list(itertools.islice(starts, count)) for count in counts]
        lengths = [min(stop - start for start, stop in places) for places in members]
        self.slices = consecutive(keys, lengths)
        """Where the diagonal of each pair is."""
        # Pairs with one number of meetings are averaged in one call.
        self._groups: list[Tensor] | None = None
        if max(counts) > 1:
            self._prepare(members, lengths)

    def _prepare(self, members: list[list[tuple[int, int]]], lengths: list[int]) -> None:
        places: dict[int, list[Tensor]] = {}
        rows: dict[int, list[Tensor]] = {}
        ends = itertools.accumulate(lengths, initial=0)
        for meetings, length, end in zip(members, lengths, ends, strict=False):
            along = torch.arange(length)
            index = along[:, None] + torch.tensor([start for start, _ in meetings])
            places.setdefault(len(meetings), []).append(index)
            rows.setdefault(len(meetings), []).append(along + end)
        device = self._diagonals.device
        self._groups = [torch.cat(indices).to(device) for indices in places.values()]
        self._order = torch.cat([row for group in rows.values() for row in group]).argsort()
        self._order = self._order.to(device)

    def run(self) -> Tensor:
        """All diagonals as they are now, one after the other; the next run may overwrite them."""
        block = self._diagonals.run()
        if self._groups is None:
            return block
        means = [block[index].mean(dim=1, dtype=torch.float64) for index in self._groups]
        return torch.cat(means)[self._order].to(block.dtype)


def _mean(diagonals: list[Array]) -> Array:
    if len(diagonals) == 1:
        return diagonals[0]
    length = min(len(diagonal) for diagonal in diagonals)
    together = np.stack([diagonal[:length] for diagonal in diagonals])
    mean: Array = together.mean(axis=0, dtype=np.float64).astype(together.dtype)
    return mean


def _one_dtype(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    if U.dtype == Vh.dtype:
        return U, Vh
    return U.double(), Vh.double()
