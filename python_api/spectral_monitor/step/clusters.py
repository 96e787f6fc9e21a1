r"""Which singular vectors can be told apart here and in the reference, and which form clusters.

A number of agreement compares vector i of two matrices, those of this step and of the reference
(`step.reference`); without one, or where vectors are compared at the end, those of the last
measured step. It means something where vector i can be told from its neighbours in both, and where
no two values that are closer than the errors of both and the way both moved could have changed
places unnoticed. So value i has the radius

    b_i(t) + b_i(ref) + max(|sigma_j(t) - sigma_j(ref)| : |j - i| <= 1),

bounds of the errors and movement, and values whose intervals overlap at the step or in the
reference are a cluster (see `spectral_kernels.alignment.clusters`). An orthogonal matrix is one
cluster for ever where it is the reference, however far its values come apart later: its own vectors
are arbitrary.

The movement of a value is, to first order, the diagonal entry u_i^T E v_i of the change E; what
turns two vectors is an entry beside the diagonal, by entry / gap. One diagonal entry may be small
by chance, so the largest of three is taken for their size. It is a lower bound of ||E||_2, with
which Wedin's theorem would promise more, but to nearly no vector: that norm belongs to one
direction, the distance of neighbours in a bulk of values to many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from spectral_monitor.model.registry import Matrix
from spectral_monitor.step.frame import Array, MatrixRow
from spectral_monitor.step.packed_rows import spectra_of
from spectral_monitor.step.views import ArrayViews, consecutive
from torch import Tensor

from spectral_kernels.alignment.prepared import PreparedClusters
from spectral_kernels.alignment.torch_backend import find_clusters, joint_radius
from spectral_kernels.entry.results import SVD

__all__ = ["ClusterFinder", "Compared", "clusters_against", "shown"]


class Compared(NamedTuple):
    """The spectra that those of a step are compared with, one entry for each matrix."""

    spectra: list[Tensor]
    """(2, length) float64, values and bounds; no length where none are known."""
    follows: list[bool]
    """Whether it is the last measured step, so that every step takes the place of the one before;
    else it stays."""

    def prepared(
        self, lengths: list[int], ranks: list[int], dtype: torch.dtype, device: torch.device
    ) -> PreparedClusters:
        """Work on spectra of these lengths, of matrices of these ranks."""
        kept = [0 if follow else s.shape[1] for s, follow in zip(*self, strict=True)]
        unseen = [
            _unseen(length, rank, known)
            for length, rank, known in zip(lengths, ranks, kept, strict=True)
        ]
        found = PreparedClusters(lengths, unseen, self.follows, dtype, device)
        for place, s in zip(torch.split(found.compared, lengths, dim=1), self.spectra, strict=True):
            count = min(place.shape[1], s.shape[1])
            place[:, :count].copy_(s[:, :count])
        return found

    def now(self, found: PreparedClusters, lengths: list[int]) -> list[Tensor]:
        """The spectra after the last run, copies."""
        return [
            part.clone() if follow else s
            for part, s, follow in zip(
                torch.split(found.compared, lengths, dim=1), *self, strict=True
            )
        ]


def _unseen(length: int, rank: int, known: int) -> int:
    """From which index on values are not known here or, where some are, in the reference."""
    ends = [count for count in (length, known or rank) if count < rank]
    return min(*ends, length) if ends else -1


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
        none = torch.zeros(2, 0, dtype=torch.float64)
        self._compared = Compared([none] * len(matrices), [True] * len(matrices))

    @property
    def compared(self) -> Compared:
        """What is compared with now."""
        if self._found is None:
            return self._compared
        spectra = self._compared.now(self._found, self._lengths)
        return self._compared._replace(spectra=spectra)

    def compare_with(self, spectra: Mapping[str, tuple[Array, Array]]) -> None:
        """Singular values and bounds of the reference, by name; of other matrices the last step."""
        for i, name in enumerate(self._names):
            if name in spectra:
                both = np.array(spectra[name], dtype=np.float64)
                self._compared.spectra[i] = torch.from_numpy(both)
                self._compared.follows[i] = False
        self._found, self._plan_of = None, None

    def find(
        self, svds: Sequence[SVD], rows: Mapping[str, MatrixRow]
    ) -> tuple[list[Tensor], Mapping[str, Array]]:
        """Clusters by index of the matrix, and by name which vectors are identifiable.

        The first are (r,) int64 as of `spectral_kernels.singular_value_clusters`, in the same
        memory at every step; the second (min(k, r),) bool, none where there are no vectors. The
        last cluster of a spectrum of which only leading values are known, here or in the
        reference, is not identifiable: its neighbour is not seen.
        """
        values, bounds = spectra_of(rows, self._names)
        found = self._prepared(values, [svd.Vh.shape[0] for svd in svds])
        # Values of the other methods may be beyond the range of the type.
        with np.errstate(over="ignore"):
            np.copyto(found.values.numpy(), values.block)
        np.copyto(found.bounds.numpy(), bounds.block)
        found.run()
        if svds[0].Vh.device.type != "cpu":
            self._on_device.copy_(found.first)
        return self._clusters, ArrayViews(found.alone.numpy()[self._index], self._shown)

    def state(self) -> dict[str, Any]:
        """For ``state_dict``: what is compared with, see `Compared`."""
        spectra, follows = self.compared
        return {"spectra": [x.cpu().clone() for x in spectra], "follows": list(follows)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what is compared with from a state."""
        self.take(Compared([x.double().cpu() for x in state["spectra"]], list(state["follows"])))

    def take(self, compared: Compared) -> None:
        """Go on from what another program of the same matrices compared with last."""
        self._found, self._plan_of = None, None
        self._compared = compared._replace(spectra=[x.cpu() for x in compared.spectra])

    def _prepared(self, values: ArrayViews[str], vectors: list[int]) -> PreparedClusters:
        """Where what is, all spectra one after the other; anew where their numbers change."""
        if self._found is not None and self._plan_of == (values.slices, vectors):
            return self._found
        self._compared = self.compared
        lengths = [s.stop - s.start for s in values.slices.values()]
        ranks = [matrix.rank for matrix in self._matrices]
        dtype = torch.from_numpy(values.block[:0]).dtype
        found = self._compared.prepared(lengths, ranks, dtype, torch.device("cpu"))
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


def clusters_against(
    values: Array, bounds: Array, reference: Array, reference_bounds: Array, *, rank: int
) -> tuple[Tensor, Tensor]:
    """The clusters that `ClusterFinder` finds against a reference, from recorded values.

    Args:
        values, bounds: (T, r) singular values, and bounds of their errors.
        reference, reference_bounds: (r,) those of the reference.
        rank: how many values there are, of which r may be the leading ones.

    Returns:
        (T, r) int64 clusters, and bool, which are identifiable.
    """
    S, error, other, its = (
        torch.from_numpy(np.array(x, dtype=np.float64))
        for x in (values, bounds, reference, reference_bounds)
    )
    other = other.expand(S.shape)
    first, alone = find_clusters(S, joint_radius(S, error, other, its), other)
    if S.shape[1] < rank:
        alone &= first < first[:, -1:]
    return first, alone
