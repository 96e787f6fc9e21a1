"""What a tracked step computes, as one fixed sequence of work on memory that stays where it is.

    snapshot -> trackers -> ranks with bounds, alignment, clusters, agreement -> block of numbers

No number is read on the way, so nothing waits for the device and a CUDA graph may record it all.
It is what `step.tracked_solver`, `meetings`, `clusters` and `reference` do step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from spectral_monitor.device.results import SCALARS, Asked, Derived, Found, Layout
from spectral_monitor.step.clusters import Compared
from torch import Tensor

from spectral_kernels.snapshot.prepared import PreparedSnapshot
from spectral_kernels.tracking.op import SpectrumTracker

__all__ = ["Program"]


class Program:
    """See above.

    Args:
        asked: what to compute.
        trackers: the matrices of each, and parts after them, by their place, and the tracker; all
            have vectors already.
        views: the matrices and parts as they are now.
        compared: what the spectra are compared with.
    """

    def __init__(
        self,
        asked: Asked,
        trackers: Sequence[tuple[Sequence[int], SpectrumTracker]],
        views: Sequence[Tensor],
        compared: Compared,
    ) -> None:
        self._asked, self._trackers, self._compared = asked, trackers, compared
        self._snapshot = PreparedSnapshot(list(views))
        self._packed: list[Tensor] = self._snapshot.run().matrices
        self._scalars = views[0].new_zeros(SCALARS, dtype=torch.float64)
        self._derived: Derived | None = None

    def fits(self, views: Sequence[Tensor]) -> bool:
        """Whether the snapshot is of matrices that lie where these lie."""
        return self._snapshot.fits(list(views))

    def read(self, scalars: Sequence[Tensor]) -> None:
        """Take a snapshot of the matrices, and of at most ``SCALARS`` numbers."""
        for i, value in enumerate(scalars):
            self._scalars[i].copy_(value.detach().reshape(()))
        self._snapshot.run()

    def solve(self, which: Sequence[int]) -> None:
        """Solve these matrices anew, from the snapshot. Waits for the device."""
        for members, tracker in self._trackers:
            if not set(members).isdisjoint(which):
                tracker.resolve([[0] if i in which else [] for i in members])

    def compute(self) -> None:
        """Fill the block from the snapshot."""
        found = self._updated()
        if self._derived is None or not self._derived.fits(found):
            self._derived = Derived(self._asked, found, self.compared)
        self._derived.run(found, self._scalars)

    @property
    def block(self) -> Tensor:
        """(length,) float64: the numbers of the step, once computed."""
        assert self._derived is not None
        block: Tensor = self._derived.block
        return block

    @property
    def layout(self) -> Layout:
        """Where they are."""
        assert self._derived is not None
        return self._derived.layout

    @property
    def compared(self) -> Compared:
        """What the next spectra are compared with."""
        return self._compared if self._derived is None else self._derived.compared

    def _updated(self) -> list[Found]:
        found: dict[int, Found] = {}
        for members, tracker in self._trackers:
            if not members:
                continue
            svds = tracker.update([self._packed[i] for i in members])
            norms = tracker.error_norms if tracker.k is None else tracker.frobenius_norms
            parts: Any = (tracker.bounds, tracker.identities, tracker.codes, tracker.lost, norms)
            entries = map(Found, svds, *parts)
            found |= zip(members, entries, strict=True)
        return [found[i] for i in range(len(found))]
