"""What follows from the trackers' results in a step: ranks, alignment, clusters, agreement.

All of it ends in one block of numbers, which is all that goes to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from spectral_monitor.model.registry import Matrix
from spectral_monitor.step.bounds import leading_value_bounds
from spectral_monitor.step.clusters import Compared
from spectral_monitor.step.meetings import Meetings
from spectral_monitor.step.reference import Reference
from spectral_monitor.step.views import consecutive
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.rank.summary_bounds import BoundedSummaries

__all__ = ["SCALARS", "Asked", "Derived", "Found", "Layout"]

SCALARS = 32
"""Room for the caller's numbers that are on the device, such as the loss."""


class Asked(NamedTuple):
    """What a monitor wants to know of every step."""

    matrices: Sequence[Matrix]
    """Those under watch; of parts, which come after them, nothing but their meetings."""
    complete: list[int]
    """Matrices with all singular values."""
    partial: list[int]
    """Those with leading ones."""
    meetings: Meetings
    reference: Reference


class Layout(NamedTuple):
    """What lies where in the block."""

    places: dict[str, slice]
    lengths: list[int]
    """Singular values of each matrix."""
    dtype: torch.dtype
    """Of values and vectors; all numbers of the block are float64."""
    alignment: dict[tuple[str, str], slice]
    """Within its part of the block; and so below."""
    agreement: dict[str, slice]


class Found(NamedTuple):
    """One matrix after an update; ``norm`` is that of all errors, or with k of the matrix."""

    svd: SVD
    bounds: Tensor
    identities: Tensor
    code: Tensor
    lost: Tensor
    norm: Tensor


class Derived:
    """Everything that follows from updates whose results are in these places.

    Args:
        asked: what to compute.
        found: the results of the matrices and parts, any numbers of them.
        compared: what the spectra are compared with.
    """

    def __init__(self, asked: Asked, found: list[Found], compared: Compared) -> None:
        self._asked, self._places = asked, _places(found)
        meeting = [entry.svd for entry in found]
        own = found[: len(asked.matrices)]
        self._svds = meeting[: len(own)]
        lengths = [len(svd.S) for svd in self._svds]
        S = self._svds[0].S
        ranks = [matrix.rank for matrix in asked.matrices]
        self._compared = compared
        self._clusters = compared.prepared(lengths, ranks, S.dtype, S.device)
        first = list(torch.split(self._clusters.first, lengths))
        complete = [found[i] for i in asked.complete]
        self._tables = BoundedSummaries(
            [entry.svd.S for entry in complete],
            [entry.bounds for entry in complete],
            [entry.norm for entry in complete],
            [asked.matrices[i].shape for i in asked.complete],
        )
        self._alignment = asked.meetings.prepared(meeting)
        self._agreement = asked.reference.prepared(self._svds, first)
        parts = self._parts(found)
        places = consecutive(list(parts), [part.numel() for part in parts.values()])
        places["scalars"] = slice(places["alone"].stop, places["alone"].stop + SCALARS)
        self.layout = Layout(
            places,
            lengths,
            S.dtype,
            {} if self._alignment is None else self._alignment.slices,
            {} if self._agreement is None else self._agreement.slices,
        )
        self.block = S.new_zeros(places["scalars"].stop, dtype=torch.float64)

    @property
    def compared(self) -> Compared:
        """See `Program`."""
        now = self._compared.now(self._clusters, self.layout.lengths)
        return self._compared._replace(spectra=now)

    def fits(self, found: list[Found]) -> bool:
        """Whether these results are in the same places."""
        # Where those before are kept, others cannot have come to the same memory.
        return _places(found) == self._places

    def run(self, found: list[Found], scalars: Tensor) -> None:
        """Fill the block."""
        own = found[: len(self._svds)]
        self._clusters.values.copy_(torch.cat([entry.svd.S for entry in own]))
        self._clusters.bounds.copy_(torch.cat(self._radii(own)))
        self._clusters.run()
        for name, part in {**self._parts(found), "scalars": scalars}.items():
            self.block[self.layout.places[name]].copy_(part.reshape(-1))
        if self._asked.reference.wants_previous:
            self._asked.reference.follow(self._svds, [entry.code >= 0 for entry in own])

    def _parts(self, found: list[Found]) -> dict[str, Tensor]:
        """The numbers, in the order of the block; of ``alone`` those of the last clusters."""
        nothing = found[0].bounds[:0]
        leading = [found[i].norm for i in self._asked.partial]
        own = found[: len(self._svds)]
        return {
            "values": torch.cat([entry.svd.S for entry in own]),
            "bounds": torch.cat([entry.bounds for entry in own]),
            "identities": torch.cat([entry.identities for entry in own]),
            "codes": torch.stack([entry.code for entry in own]),
            "lost": torch.stack([entry.lost for entry in found]),
            "norms": torch.stack(leading) if leading else nothing,
            "tables": self._tables.run() if self._asked.complete else nothing,
            "alignment": nothing if self._alignment is None else self._alignment.run(),
            "agreement": nothing if self._agreement is None else self._agreement.prepared.run(),
            "alone": self._clusters.alone,
        }

    def _radii(self, found: list[Found]) -> list[Tensor]:
        """How far each value may be off, (r,) per matrix: the bounds that rows have."""
        radii = [entry.bounds for entry in found]
        groups: dict[tuple[int, tuple[int, int]], list[int]] = {}
        for i in self._asked.partial:
            shape = self._asked.matrices[i].shape
            groups.setdefault((len(found[i].svd.S), shape), []).append(i)
        for (_, shape), members in groups.items():
            values, norms, told = (
                torch.stack(parts)
                for parts in zip(
                    *((found[i].svd.S, found[i].norm, found[i].bounds) for i in members),
                    strict=True,
                )
            )
            rows = leading_value_bounds(values, norms, told, shape)
            for i, row in zip(members, rows, strict=True):
                radii[i] = row
        return radii


def _places(found: list[Found]) -> list[int]:
    """The addresses that work on these results is prepared for."""
    return [x.data_ptr() for entry in found for x in (*entry.svd, entry.bounds, entry.norm)]
