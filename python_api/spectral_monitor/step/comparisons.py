"""What a step is compared with: a reference, the last measured step, and chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.pairs.ports import Pair
from spectral_monitor.step.chance import Chance
from spectral_monitor.step.changes import Changes
from spectral_monitor.step.clusters import Clusters
from spectral_monitor.step.reference import Given, Reference


class Comparisons:
    """Everything that a monitor keeps of earlier steps, but for what its solver keeps.

    Args:
        given: the reference, see `spectral_monitor.step.reference.Reference`.
        matrices: those under watch.
        k: how many vectors of each take part.
        watch: see `spectral_monitor.step.changes.check_watch`.
        pairs: of layers, for what chance would give.
        generator, grad_scale: see `spectral_monitor.step.changes.Changes`.
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
        grad_scale: Callable[[], float] | None = None,
    ) -> None:
        self.reference = Reference(given, matrices, k)
        self.changes = Changes(matrices, watch, generator, k, grad_scale)
        self.clusters = Clusters(matrices)
        self.clusters.compare_with(self.reference.spectra)
        self.chance = Chance.of(matrices, pairs, self.changes.matrices, self.changes.subspace)

    @property
    def wants_all_vectors(self) -> bool:
        """Whether the vectors of every matrix are needed."""
        return self.reference.wants_all or bool(self.changes.matrices)

    def memory(self) -> dict[str, dict[str, int]]:
        """Purpose ("reference", "copy for updates") -> matrix -> bytes."""
        parts = {"reference": self.reference.memory(), "copy for updates": self.changes.memory()}
        return {what: sizes for what, sizes in parts.items() if sizes}

    def state(self) -> dict[str, Any]:
        """The part of a monitor's state that is of earlier steps."""
        return {
            "reference": self.reference.state(),
            "clusters": self.clusters.state(),
            "changes": self.changes.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the ``state`` of other comparisons."""
        self.reference.load_state(state["reference"])
        self.clusters.load_state(state["clusters"])
        self.changes.load_state(state["changes"])
