"""Alignment and agreement of the same pairs again and again, prepared once."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.program.op import Program, calls_of, product_of


class PreparedDiagonals:
    """``alignment_diagonal`` of many pairs whose memory stays, as that of a tracker's results does.

    A call costs the products and one block of results; a list of diagonals made anew costs four
    microseconds for each.

    Args:
        pairs: at least one U (m, r), Vh_next (r', m), all float32 or all float64, on one device.
        k: how many entries of each; capped at min(r, r').
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], k: int) -> None:
        self.counts = [min(k, U.shape[1], Vh.shape[0]) for U, Vh in pairs]
        self.device = pairs[0][0].device
        module = dispatch.backend("alignment", pairs[0][0].device.type)
        self._diagonals = module.Diagonals(pairs, k)
        self.out: Tensor = self._diagonals.out
        self.calls = getattr(self._diagonals, "calls", None)

    def run(self) -> Tensor:
        """Return ``out``: all diagonals as they are now, one after the other, ``counts`` entries
        each. The next run overwrites them."""
        with torch.no_grad():
            block: Tensor = self._diagonals.run()
        return block


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
        module = dispatch.backend("alignment", pairs[0][0].U.device.type)
        self._cosines = module.ClusterCosines([*left, *right], [*clusters, *clusters])
        total = sum(map(len, clusters))
        self.out: Tensor = self._cosines.out.new_zeros(2, total)
        rows = zip(self._cosines.out, self.out, strict=True)
        products = [product_of(row[:total], row[total:], out) for row, out in rows]
        entries = [self._cosines, *products]
        self._program = Program(entries, self.out.device.type)
        self.calls = calls_of(entries)

    def run(self) -> Tensor:
        """Return ``out`` (2, sum of counts): single vectors, then the subspaces of clusters. The
        next run overwrites it."""
        self._program.run()
        return self.out


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
        self._clusters = dispatch.backend("alignment", device.type).Clusters(
            self.values, self.bounds, self.compared, lengths, unseen, follows,
            self.first, self.alone,
        )  # fmt: skip
        self.calls = getattr(self._clusters, "calls", None)

    def run(self) -> None:
        """Fill ``first`` (``singular_value_clusters``) and ``alone`` (``identifiable_vectors``).

        Values belong together where their intervals overlap in one of the two spectra. The radius
        is the bounds of both values, and the largest distance from one to the other of a value
        and its two neighbours.
        """
        with torch.no_grad():
            self._clusters.run()
