"""Alignment and agreement of the same pairs again and again, prepared once."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import dispatch
from spectral_kernels.results import SVD


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
        module = dispatch.backend("alignment", pairs[0][0].device.type)
        self._diagonals = module.Diagonals(pairs, k)

    def run(self) -> Tensor:
        """Return all diagonals as they are now, one after the other, ``counts`` entries each.

        The next run may overwrite them.
        """
        with torch.no_grad():
            block: Tensor = self._diagonals.run()
        return block


class PreparedAgreement:
    """``singular_vector_agreement`` and ``subspace_agreement`` of pairs whose memory stays.

    Args:
        pairs: at least one pair of SVDs of matrices of one shape, all vectors float32 or all
            float64, on one device.
        counts: how many triplets of each pair take part; both SVDs have as many.
    """

    def __init__(self, pairs: list[tuple[SVD, SVD]], counts: list[int]) -> None:
        self.counts = counts
        device = pairs[0][0].U.device
        self.clusters = torch.zeros(sum(counts), dtype=torch.int64, device=device)
        first = list(torch.split(self.clusters, counts))
        left = [(a.U, b.U.mT) for a, b in pairs]
        right = [(a.Vh.mT, b.Vh) for a, b in pairs]
        module = dispatch.backend("alignment", device.type)
        self._cosines = module.ClusterCosines([*left, *right], [*first, *first])

    def run(self, clusters: list[Tensor]) -> Tensor:
        """Return (2, sum of counts): single vectors, then the subspaces of clusters.

        Args:
            clusters: one (count,) int64 for each pair, see ``singular_value_clusters``.
        """
        with torch.no_grad():
            torch.cat(clusters, out=self.clusters)
            block: Tensor = self._cosines.run()
            half = block.shape[1] // 2
            return block[:, :half] * block[:, half:]
