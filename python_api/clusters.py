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
import numpy.typing as npt
import torch
from torch import Tensor

from python_api.frame import Array, MatrixRow
from python_api.matrices import Matrix
from python_api.packed_rows import spectra_of
from python_api.views import ArrayViews, consecutive
from spectral_kernels.alignment.prepared import PreparedClusters
from spectral_kernels.alignment.torch_backend import find_clusters
from spectral_kernels.results import SVD

__all__ = ["ClusterFinder", "clusters_over_time", "shown"]


class ClusterFinder:
    """Finds the clusters of every matrix at every step, all in one pass.

    Args:
        matrices: those under watch.
        k: how many vectors of each take part.
    """

    def __init__(self, matrices: Sequence[Matrix], k: int) -> None:
        self._matrices = matrices
        self._names = [matrix.name for matrix in matrices]
        self._k = k
        self._plan_of: object = None
        self._found: PreparedClusters | None = None
        self._last: list[Tensor] = []

    def find(
        self, svds: Sequence[SVD], rows: Mapping[str, MatrixRow]
    ) -> tuple[list[Tensor], Mapping[str, Array]]:
        """Clusters by index of the matrix, and by name which vectors are identifiable.

        The first are (r,) int64 as of `spectral_kernels.singular_value_clusters`, in the same
        memory at every step; the second (min(k, r),) bool, none where there are no vectors. The
        last cluster of a spectrum of which only leading values are known is not identifiable:
        its neighbour is not seen.
        """
        values, bounds = spectra_of(rows, self._names)
        found = self._prepared(values, [svd.Vh.shape[0] for svd in svds])
        np.copyto(found.values.numpy(), values.block)
        np.copyto(found.bounds.numpy(), bounds.block)
        found.run()
        if svds[0].Vh.device.type != "cpu":
            self._on_device.copy_(found.first)
        return self._clusters, ArrayViews(found.alone.numpy()[self._index], self._shown)

    def state(self) -> list[Tensor]:
        """For ``state_dict``: the last values of every matrix, none before the first step."""
        if self._found is None:
            return self._last
        return [x.clone() for x in torch.split(self._found.last, self._lengths)]

    def load_state(self, state: Sequence[Tensor]) -> None:
        """Take the values of a state."""
        self._found, self._plan_of = None, None
        self._last = [part.double().cpu() for part in state]

    def _prepared(self, values: ArrayViews[str], vectors: list[int]) -> PreparedClusters:
        """Where what is, all spectra one after the other; anew where their numbers change."""
        if self._found is not None and self._plan_of == (values.slices, vectors):
            return self._found
        self._last = self.state()
        lengths = [s.stop - s.start for s in values.slices.values()]
        whole = [matrix.rank for matrix in self._matrices]
        dtype = torch.from_numpy(values.block[:0]).dtype
        found = PreparedClusters(
            lengths, [r < full for r, full in zip(lengths, whole, strict=True)], dtype
        )
        if [len(part) for part in self._last] == lengths:
            found.last.copy_(torch.cat(self._last))
        self._plan_of, self._found, self._lengths = (values.slices, vectors), found, lengths
        device = self._matrices[0].device
        self._on_device = found.first if device.type == "cpu" else found.first.to(device)
        self._clusters = list(torch.split(self._on_device, lengths))
        counts = [min(self._k, *pair) for pair in zip(lengths, vectors, strict=True)]
        self._index, self._shown = shown(values.slices, counts)
        return found


def shown(
    places: Mapping[str, slice], counts: Sequence[int]
) -> tuple[npt.NDArray[np.int64], dict[str, slice]]:
    """The first entries, so many of each, of arrays in one block: their index in the block, and
    where they are among themselves. Arrays of which there are none are left out."""
    starts = [place.start for place in places.values()]
    index = [np.arange(s, s + count) for s, count in zip(starts, counts, strict=True)]
    names = [name for name, count in zip(places, counts, strict=True) if count]
    return np.concatenate(index), consecutive(names, [count for count in counts if count])


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
