"""Alignment and agreement of pairs: once, or prepared for the same memory again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.program.op import Program, calls_of, product_of

Pairs = Sequence[tuple[Tensor, Tensor]]


def align(
    module: Any, pairs: Pairs, counts: Sequence[int], first: Sequence[Tensor] = ()
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the diagonals of pairs and, with clusters, their cosines, each in its own memory.

    Args:
        module: the backend that computes them.
        pairs: U (..., m, r), Vh (..., r', m), all float32 or all float64, on one device.
        counts: how many entries of each.
        first: (..., count) int64 clusters of each, or none at all.
    """
    lines = [_result(U, count) for (U, _), count in zip(pairs, counts, strict=True)]
    cosines = [torch.empty_like(x) for x in lines] if first else []
    module.Alignments(pairs, lines, cosines, [x.contiguous() for x in first]).run()
    return lines, cosines


def _result(U: Tensor, count: int) -> Tensor:
    make = U.new_empty if U.shape[-2] else U.new_zeros
    return make((*U.shape[:-2], count))


class PreparedDiagonals:
    """``alignment_diagonal`` of many pairs whose memory stays, as that of a tracker's results does.

    A call costs the products and one block of results; a list of diagonals made anew costs four
    microseconds for each.

    Args:
        pairs: at least one U (m, r), Vh_next (r', m), all float32 or all float64, on one device.
        k: how many entries of each; capped at min(r, r').
        clusters: (count,) int64 for each, contiguous, in place of k: how many vectors take part,
            and what a run reads for the roots of ``subspace_overlap`` of every index's cluster.
    """

    def __init__(self, pairs: Pairs, k: int = 0, clusters: Sequence[Tensor] = ()) -> None:
        self.counts = [min(k, U.shape[1], Vh.shape[0]) for U, Vh in pairs]
        if clusters:
            self.counts = [len(first) for first in clusters]
        block = pairs[0][0].new_zeros(2 if clusters else 1, sum(self.counts))
        lines, *cosines = (torch.split(row, self.counts) for row in block)
        self.out = block if clusters else block[0]
        module = dispatch.backend("alignment", block.device.type)
        self._alignments = module.Alignments(pairs, lines, *(cosines or [()]), clusters)
        self.calls = getattr(self._alignments, "calls", None)

    def run(self) -> Tensor:
        """Return ``out``: all diagonals as they are now, one after the other, ``counts`` entries
        each, with clusters (2, total) above their cosines. The next run overwrites them."""
        with torch.no_grad():
            self._alignments.run()
        return self.out


class PreparedAgreement:
    """``singular_vector_agreement`` and ``subspace_agreement`` of pairs whose memory stays.

    Args:
        pairs: at least one pair of SVDs of matrices of one shape, all vectors float32 or all
            float64, on one device.
        clusters: (count,) int64 for each, contiguous, see ``singular_value_clusters``: how many
            triplets take part, and what a run reads.
    """

    def __init__(self, pairs: list[tuple[SVD, SVD]], clusters: list[Tensor]) -> None:
        left = [(a.U, b.U.mT) for a, b in pairs]
        right = [(a.Vh.mT, b.Vh) for a, b in pairs]
        cosines = PreparedDiagonals([*left, *right], clusters=[*clusters, *clusters])
        total = sum(map(len, clusters))
        self.out = cosines.out.new_zeros(2, total)
        rows = zip(cosines.out, self.out, strict=True)
        products = [product_of(row[:total], row[total:], out) for row, out in rows]
        entries = [cosines, *products]
        self._program = Program(entries, self.out.device.type)
        self.calls = calls_of(entries)

    def run(self) -> Tensor:
        """Return ``out`` (2, sum of counts): single vectors, then the subspaces of clusters. The
        next run overwrites it."""
        self._program.run()
        return self.out


class ComparedSpectra(NamedTuple):
    """Spectra one after the other, each beside one that it is compared with, and what clusters
    they have; see ``PreparedClusters``."""

    values: Tensor
    bounds: Tensor
    compared: Tensor
    lengths: list[int]
    unseen: list[int]
    follows: list[bool]
    first: Tensor
    """(total,) int64 result: the index of the first value of each value's cluster, from the start
    of its spectrum."""
    alone: Tensor
    """(total,) bool result: whether the value's vectors are identifiable."""


class PreparedClusters:
    """Clusters of spectra, each beside one that it is compared with, whose memory stays.

    ``values`` (float32 or float64) and ``bounds`` (float64), (total,): spectra one after the
    other, and bounds of their errors, for the caller to fill. ``compared`` (2, total) float64: the
    same of the other ones, NaN for none.

    Args:
        lengths: of each spectrum.
        unseen: of each, the index from which on values are not known here or in the other one;
            -1 where all are.
        follows: of each, whether the other one is that of the run before; such a run leaves its
            values and bounds in ``compared``, where they are finite.
        dtype: of the values.
        device: of all of it.
    """

    def __init__(
        self,
        lengths: list[int],
        unseen: list[int],
        follows: list[bool],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        total, device = sum(lengths), torch.device(device)
        self.values = torch.zeros(total, dtype=dtype, device=device)
        self.bounds = torch.zeros(total, dtype=torch.float64, device=device)
        self.compared = torch.full((2, total), torch.nan, dtype=torch.float64, device=device)
        self.first = torch.zeros(total, dtype=torch.int64, device=device)
        self.alone = torch.zeros(total, dtype=torch.bool, device=device)
        self._spectra = ComparedSpectra(
            self.values, self.bounds, self.compared, lengths, unseen, follows,
            self.first, self.alone,
        )  # fmt: skip
        self._clusters = dispatch.backend("alignment", device.type).Clusters(self._spectra)
        self.calls = getattr(self._clusters, "calls", None)

    def run(self) -> None:
        """Fill ``first`` (``singular_value_clusters``) and ``alone`` (``identifiable_vectors``).

        Values belong together where their intervals overlap in one of the two spectra. The radius
        is the bounds of both values, and the largest distance from one to the other of a value
        and its two neighbours.
        """
        with torch.no_grad():
            self._clusters.run()
