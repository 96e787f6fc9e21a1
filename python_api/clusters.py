"""Which singular vectors of a step can be told apart, and which form clusters.

Two singular values that are closer than the error of both and the distance that both moved since
the last measured step could have changed places unnoticed: their vectors mean something together
only. So value i has the radius

    bound of its error + |sigma_i(t) - sigma_i(t - 1)|,

the second term 0 at the first step, and values whose intervals overlap are a cluster (see
`spectral_kernels.alignment.clusters`). The movement of a value is, to first order, the diagonal
entry u_i^T (A_t - A_(t-1)) v_i, and an entry beside the diagonal of the same size is what turns
two vectors, by entry / gap. It is a lower bound of ||A_t - A_(t-1)||_2, with which Wedin's
theorem would promise more, but to nearly no vector: that norm belongs to one direction, the
distance of neighbours in a bulk of values to many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from python_api.frame import Array, MatrixRow
from python_api.matrices import Matrix
from spectral_kernels.alignment.clusters import find_clusters
from spectral_kernels.results import SVD

__all__ = ["ClusterFinder", "clusters_over_time"]


class ClusterFinder:
    """Finds the clusters of every matrix at every step, all in one pass.

    Args:
        matrices: those under watch.
        k: how many vectors of each take part.
    """

    def __init__(self, matrices: Sequence[Matrix], k: int) -> None:
        self._matrices = matrices
        self._k = k
        self._plan_of: list[tuple[int, int]] = []
        self._last: Array | None = None

    def find(
        self, svds: Sequence[SVD], rows: Mapping[str, MatrixRow]
    ) -> tuple[list[Tensor], dict[str, Array]]:
        """Clusters by index of the matrix, and by name which vectors are identifiable.

        The first are (r,) int64 as of `spectral_kernels.singular_value_clusters`; the second
        (min(k, r),) bool, none where there are no vectors. The last cluster of a spectrum of
        which only leading values are known is not identifiable: its neighbour is not seen.
        """
        own = [rows[matrix.name] for matrix in self._matrices]
        counts = [
            (len(row.singular_values), svd.Vh.shape[0]) for row, svd in zip(own, svds, strict=True)
        ]
        if counts != self._plan_of:
            self._plan(counts)
        values = np.concatenate([row.singular_values for row in own], dtype=np.float64)
        radius = np.concatenate([row.singular_value_bounds for row in own])
        if self._last is None:
            self._last = values
        else:
            radius = radius + np.abs(values - self._last)
            # What is not finite keeps the last values that were.
            self._last = np.where(np.isfinite(values), values, self._last)
        first, known = find_clusters(values, radius, self._starts)
        for last in self._open:
            known[first[last] : last + 1] = False
        clusters = torch.from_numpy(first - self._offset).to(svds[0].Vh.device)
        return (
            list(torch.split(clusters, self._lengths)),
            {name: known[start:stop] for name, start, stop in self._shown},
        )

    def state(self) -> list[Tensor]:
        """For ``state_dict``: the last values of every matrix, none before the first step."""
        if self._last is None:
            return []
        return [x.clone() for x in torch.split(torch.from_numpy(self._last), self._lengths)]

    def load_state(self, state: Sequence[Tensor]) -> None:
        """Take the values of a state."""
        self._plan_of, self._last = [], None
        if state:
            self._lengths = [len(part) for part in state]
            self._last = np.concatenate([part.double().cpu().numpy() for part in state])

    def _plan(self, counts: list[tuple[int, int]]) -> None:
        """Where what is, all spectra one after the other, for these numbers of values, vectors."""
        lengths = [length for length, _ in counts]
        ends = np.cumsum(lengths, dtype=np.int64)
        begins = ends - lengths
        if self._last is not None and len(self._last) != sum(lengths):
            self._last = None
        self._plan_of, self._lengths = counts, lengths
        self._offset = np.repeat(begins, lengths)
        self._starts = np.zeros(sum(lengths), dtype=np.bool_)
        self._starts[begins] = True
        whole = np.array([min(matrix.shape) for matrix in self._matrices])
        self._open = (ends[np.array(lengths) < whole] - 1).tolist()
        self._shown = [
            (matrix.name, start, start + min(self._k, *pair))
            for matrix, start, pair in zip(self._matrices, begins.tolist(), counts, strict=True)
            if min(pair)
        ]


def clusters_over_time(values: Array, bounds: Array) -> Tensor:
    """The clusters that `ClusterFinder` found at every step, from recorded values.

    Args:
        values: (T, r) singular values.
        bounds: (T, r) bounds of their errors.

    Returns:
        (T, r) int64.
    """
    S = torch.from_numpy(np.array(values, dtype=np.float64))
    radius = torch.from_numpy(np.array(bounds, dtype=np.float64))
    last: Any = _last_finite(S)
    radius[1:] += (S[1:] - last[:-1]).abs()
    first: Tensor = find_clusters(S, radius)[0]
    return first


def _last_finite(S: Tensor) -> Tensor:
    """Each entry, or the last one before it in time that is finite."""
    when = torch.arange(len(S)).unsqueeze(-1).expand(S.shape)
    latest = torch.where(S.isfinite(), when, 0).cummax(dim=0).values if len(S) else when
    return S.gather(0, latest)
