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
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.step.frame import Array
from spectral_monitor.step.joined_arrays import consecutive
from torch import Tensor

from spectral_kernels.alignment.prepared import PreparedClusters
from spectral_kernels.alignment.torch_backend import find_clusters, joint_radius


class Clusters:
    """Finds the clusters of every matrix at every step, all in one pass.

    The spectra that those of a step are compared with are kept here, whatever programs use them.

    Args:
        matrices: those under watch.
    """

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self._names = [matrix.name for matrix in matrices]
        self._ranks = [matrix.rank for matrix in matrices]
        # Of each matrix (2, length) float64, values and bounds, no length where none are known; and
        # whether they are those of the last measured step, so that every step takes the place of
        # the one before.
        self._spectra = [torch.zeros(2, 0, dtype=torch.float64) for _ in matrices]
        self._follows = [True] * len(matrices)
        self._prepared: PreparedClusters | None = None
        self._made_for: object = None
        self._lengths: list[int] = []

    def compare_with(self, spectra: Mapping[str, tuple[Any, Any]]) -> None:
        """Singular values and bounds of the reference, by name; of other matrices the last step."""
        self._collect()
        for i, name in enumerate(self._names):
            if name in spectra:
                self._spectra[i] = torch.stack(
                    [torch.as_tensor(x).detach().double().cpu() for x in spectra[name]]
                )
                self._follows[i] = False

    def prepared(self, lengths: list[int], values: Sequence[Tensor]) -> PreparedClusters:
        """Work on spectra of these lengths, of the dtypes and the device of ``values``: the same as
        before where these are the same."""
        device = values[0].device
        dtypes = {S.dtype for S in values}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        wanted = (lengths, dtype, device)
        if self._prepared is None or self._made_for != wanted:
            self._collect()
            self._prepared = self._prepare(lengths, dtype, device)
            self._made_for, self._lengths = wanted, lengths
        return self._prepared

    def _prepare(
        self, lengths: list[int], dtype: torch.dtype, device: torch.device
    ) -> PreparedClusters:
        kept = [
            0 if follow else s.shape[1]
            for s, follow in zip(self._spectra, self._follows, strict=True)
        ]
        unseen = [
            _unseen(length, rank, spectrum)
            for length, rank, spectrum in zip(lengths, self._ranks, kept, strict=True)
        ]
        prepared = PreparedClusters(lengths, unseen, list(self._follows), dtype, device)
        places = torch.split(prepared.compared, lengths, dim=1)
        for place, s in zip(places, self._spectra, strict=True):
            count = min(place.shape[1], s.shape[1])
            place[:, :count].copy_(s[:, :count])
        return prepared

    def _collect(self) -> None:
        """Take back the spectra of the last measured step; on a GPU this waits for it."""
        if self._prepared is None:
            return
        now = torch.split(self._prepared.compared.cpu(), self._lengths, dim=1)
        self._spectra = [
            part.clone() if follow else s
            for part, s, follow in zip(now, self._spectra, self._follows, strict=True)
        ]
        self._prepared = None

    def state(self) -> dict[str, Any]:
        """The spectra that those of a step are compared with, and whether they follow the steps."""
        now = self._spectra
        if self._prepared is not None:
            parts = torch.split(self._prepared.compared.cpu(), self._lengths, dim=1)
            both = zip(parts, now, self._follows, strict=True)
            now = [part if follow else s for part, s, follow in both]
        return {"spectra": [x.clone() for x in now], "follows": list(self._follows)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the ``state`` of other clusters."""
        self._prepared = None
        self._spectra = [x.double().cpu().clone() for x in state["spectra"]]
        self._follows = list(state["follows"])


def _unseen(length: int, rank: int, compared: int) -> int:
    """From which index on values are not known here or, where some are, in the reference."""
    ends = [count for count in (length, compared or rank) if count < rank]
    return min(*ends, length) if ends else -1


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
    """The clusters that `Clusters` finds against a reference, from recorded values.

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
