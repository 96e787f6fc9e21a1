"""A step compared with other steps: agreement, clusters, updates, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from spectral_monitor.model.registry import Matrix
from spectral_monitor.pairs.ports import Pair
from spectral_monitor.step.chance import Chance
from spectral_monitor.step.changes import Changes
from spectral_monitor.step.clusters import ClusterFinder
from spectral_monitor.step.frame import Array, MatrixRow
from spectral_monitor.step.readings import Readings
from spectral_monitor.step.reference import Given, Reference
from torch import Tensor

from spectral_kernels.entry.results import SVD

__all__ = ["Comparison", "OverTime"]


class Comparison(NamedTuple):
    """Fields of a `SpectralFrame`, see there."""

    agreement: Mapping[str, Array]
    subspace_agreement: Mapping[str, Array]
    identifiable: Mapping[str, Array]
    overlap: Mapping[str, Array]
    chance: Chance
    vectors: dict[str, SVD]


class OverTime:
    """Everything that a monitor keeps of earlier steps, but for what its solver keeps.

    Args:
        given: the reference, see `spectral_monitor.step.reference.Reference`.
        matrices: those under watch.
        k: how many vectors of each take part.
        watch: see `spectral_monitor.step.changes.check_watch`.
        pairs: of layers, for what chance would give.
        generator, grad_scale: see `spectral_monitor.step.changes.Changes`.
        in_place: see `spectral_monitor.step.reference.Reference`.
    """

    def __init__(
        self,
        given: Given,
        matrices: Sequence[Matrix],
        k: int,
        watch: Sequence[str],
        pairs: Sequence[Pair],
        generator: torch.Generator,
        *,
        in_place: bool,
        grad_scale: Callable[[], float] | None = None,
    ) -> None:
        self._matrices = matrices
        self._k = k
        self.reference = Reference(given, matrices, k, in_place=in_place)
        self.changes = Changes(matrices, watch, generator, k, grad_scale)
        self.clusters = ClusterFinder(matrices, k)
        self.clusters.compare_with(self.reference.spectra)
        self.chance = Chance.of(matrices, pairs, self.changes.matrices, self.changes.subspace)

    @property
    def wants_all_vectors(self) -> bool:
        """Whether the vectors of every matrix are needed."""
        return self.reference.wants_all or bool(self.changes.matrices)

    def start(
        self, svds: Sequence[SVD], rows: Mapping[str, MatrixRow], finite: Sequence[bool]
    ) -> None:
        """Take a first measurement for the reference; see `Reference.wants_init`."""
        self.reference.remember(svds, finite)
        known = [m.name for m, ok in zip(self._matrices, finite, strict=True) if ok]
        self.clusters.compare_with(
            {name: (rows[name].singular_values, rows[name].singular_value_bounds) for name in known}
        )

    def measure(
        self, svds: Sequence[SVD], rows: Mapping[str, MatrixRow], readings: Readings
    ) -> tuple[Mapping[str, MatrixRow], Comparison]:
        """Compare a step; ``rows``, with those of updates and gradients, come back."""
        clusters: list[Tensor] = []
        identifiable: Mapping[str, Array] = {}
        if any(svd.Vh.numel() for svd in svds):
            clusters, identifiable = self.clusters.find(svds, rows)
        agreement, subspaces = self.reference.agreement(svds, clusters)
        if self.reference.wants_previous:
            self.reference.remember(svds, [rows[m.name].finite for m in self._matrices])
        changed, overlap = self.changes.measure(svds, readings)
        self.changes.remember(readings)
        saved = self.reference.leading if self.reference.wants_final else None
        return ({**rows, **changed} if changed else rows), Comparison(
            agreement,
            subspaces,
            identifiable,
            overlap,
            self.chance,
            {m.name: saved(s) for m, s in zip(self._matrices, svds, strict=True)} if saved else {},
        )

    def memory(self) -> dict[str, dict[str, int]]:
        """What is kept -> matrix -> bytes."""
        parts = {"reference": self.reference.memory(), "copy for updates": self.changes.memory()}
        return {what: sizes for what, sizes in parts.items() if sizes}

    def state(self) -> dict[str, Any]:
        """For ``state_dict``."""
        return {
            "reference": self.reference.state(),
            "clusters": self.clusters.state(),
            "changes": self.changes.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take a state."""
        self.reference.load_state(state["reference"])
        self.clusters.load_state(state["clusters"])
        self.changes.load_state(state["changes"])
