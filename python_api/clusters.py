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
from python_api.solvers import to_arrays
from spectral_kernels.alignment.clusters import alone, first_of_cluster
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
        self._lengths: list[int] = []
        self._last: Tensor | None = None

    def find(
        self, svds: Sequence[SVD], rows: Mapping[str, MatrixRow]
    ) -> tuple[list[Tensor], dict[str, Array]]:
        """Clusters by index of the matrix, and by name which vectors are identifiable.

        The first are (r,) int64 as of `spectral_kernels.singular_value_clusters`; the second
        (min(k, r),) bool. The last cluster of a spectrum of which only leading values are known
        is not identifiable: its neighbour is not seen.
        """
        values = torch.cat([svd.S for svd in svds]).double()
        lengths = [len(svd.S) for svd in svds]
        if lengths != self._lengths:
            self._plan(lengths, values.device)
        bounds = np.concatenate([rows[m.name].singular_value_bounds for m in self._matrices])
        radius = torch.from_numpy(bounds).to(values)
        if self._last is not None:
            radius += (values - self._last).abs()
        # What is not finite keeps the last values that were.
        self._last = (
            values if self._last is None else torch.where(values.isfinite(), values, self._last)
        )
        first = first_of_cluster(values, radius, self._starts)
        flags = alone(values, radius, first) & ~torch.isin(first, first[self._open])
        clusters = [
            part - start
            for part, start in zip(torch.split(first, lengths), self._begin, strict=True)
        ]
        # There may be more values than vectors.
        parts = torch.split(flags, lengths)
        cut = [flag[: min(self._k, svd.Vh.shape[0])] for flag, svd in zip(parts, svds, strict=True)]
        known = zip(self._matrices, to_arrays(cut), strict=True)
        return clusters, {matrix.name: flags for matrix, flags in known}

    def state(self) -> list[Tensor]:
        """For ``state_dict``: the last values of every matrix, none before the first step."""
        return (
            []
            if self._last is None
            else [x.clone() for x in torch.split(self._last, self._lengths)]
        )

    def load_state(self, state: Sequence[Tensor]) -> None:
        """Take the values of a state."""
        if state:
            self._plan([len(x) for x in state], state[0].device)
            self._last = torch.cat([x.double() for x in state])

    def _plan(self, lengths: list[int], device: torch.device) -> None:
        """Where each spectrum starts, and the last entries of those that are not whole."""
        ends = np.cumsum(lengths)
        self._lengths, self._last = lengths, None
        self._begin = [int(end) - length for end, length in zip(ends, lengths, strict=True)]
        self._starts = torch.zeros(int(ends[-1]), dtype=torch.bool, device=device)
        self._starts[[b for b, length in zip(self._begin, lengths, strict=True) if length]] = True
        self._open = torch.tensor(
            [int(end) - 1 for end, length, matrix in zip(ends, lengths, self._matrices, strict=True)
             if 0 < length < min(matrix.shape)],
            dtype=torch.int64, device=device,
        )  # fmt: skip


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
    return first_of_cluster(S, radius)


def _last_finite(S: Tensor) -> Tensor:
    """Each entry, or the last one before it in time that is finite."""
    when = torch.arange(len(S)).unsqueeze(-1).expand(S.shape)
    latest = torch.where(S.isfinite(), when, 0).cummax(dim=0).values if len(S) else when
    return S.gather(0, latest)
