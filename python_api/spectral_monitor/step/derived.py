"""What follows from the solved matrices of a step: ranks, alignment, clusters, agreement.

    solved -> clusters -> ranks with bounds, alignment, agreement -> block of numbers

All of it is entries of a program (`spectral_kernels.runtime.program`), and ends in one block of
numbers, which is all that goes to the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.step.alignments import Alignments, Part
from spectral_monitor.step.bounds import leading_value_bounds
from spectral_monitor.step.clusters import Clusters
from spectral_monitor.step.joined_arrays import consecutive
from spectral_monitor.step.reference import Reference
from spectral_monitor.step.solvers import Solved, Solver
from torch import Tensor

from spectral_kernels.rank.summary_bounds import BoundedSummaries
from spectral_kernels.runtime.memory import Memory
from spectral_kernels.runtime.program.op import Entry, Program, join

SCALARS = 32
"""Room for the caller's numbers that are on the device, such as the loss."""


class Asked(NamedTuple):
    """The matrices of a monitor, how they are solved, and what they are compared with."""

    matrices: Sequence[Matrix]
    """The matrices under watch; of parts, which come after them, nothing but their alignments."""
    solver: Solver
    alignments: Alignments | None = None
    reference: Reference | None = None
    clusters: Clusters | None = None


class Layout(NamedTuple):
    """How many numbers of each kind a block has, in order."""

    places: dict[str, slice]
    lengths: list[int]
    """Singular values of each matrix."""
    vectors: list[int]
    """How many singular vectors of each matrix there are."""
    dtypes: list[torch.dtype]
    """Of values and vectors of each matrix; all numbers of the block are float64."""
    errors: list[int]
    """Indices of matrices whose core adds an error (`spectral_monitor.step.solvers.Solved`)."""
    identities: list[int]
    """How many identities each matrix has; empty where nothing is tracked."""
    alignment: list[tuple[dict[Any, slice], torch.dtype]]
    """For each dtype the places of the diagonals by name; the fields below are alike."""
    agreement: list[tuple[dict[Any, slice], torch.dtype]]


class Derived:
    """The entries of a program that follow from the results of a solver, for their memory.

    Args:
        asked: what to compute.
        solved: the results of the matrices and parts, any numbers of them.
        scalars: (SCALARS,) float64, the caller's numbers.
    """

    def __init__(self, asked: Asked, solved: Sequence[Solved], scalars: Tensor) -> None:
        self._memory = Memory(_numbers(solved))
        own = solved[: len(asked.matrices)]
        svds = [x.svd for x in own]
        lengths = [len(svd.S) for svd in svds]
        vectors = [len(svd.Vh) for svd in svds]
        dtypes = [svd.S.dtype for svd in svds]
        self.entries: list[Entry] = []
        parts: dict[str, list[Tensor]] = {
            "values": [svd.S for svd in svds],
            "bounds": [x.bounds for x in own],
            "identities": [x.identities for x in own if x.identities is not None],
            "codes": [x.code for x in own],
            "lost": [x.lost for x in solved if x.lost is not None],
            "norms": [own[i].norm for i in asked.solver.partial],
            "errors": [x.error for x in own if x.error is not None],
            "tables": self._tables(asked, own),
        }
        alignment, agreement = self._compare(asked, solved, any(vectors), parts)
        parts["alignment"] = [part.out for part in alignment]
        parts["agreement"] = [row for part in agreement for row in part.out.unbind()]
        parts["scalars"] = [scalars]
        sizes = [sum(x.numel() for x in own) for own in parts.values()]
        places = consecutive(list(parts), sizes)
        self.layout = Layout(
            places, lengths, vectors, dtypes,
            [i for i, x in enumerate(own) if x.error is not None],
            [len(x.identities) for x in own if x.identities is not None],
            [(part.slices, part.out.dtype) for part in alignment],
            [(part.slices, part.out.dtype) for part in agreement],
        )  # fmt: skip
        self.block = scalars.new_zeros(sum(sizes))
        self.entries += [
            join(numbers, self.block[places[name]]) for name, numbers in parts.items() if numbers
        ]
        if asked.reference is not None:
            self.entries += asked.reference.following(svds, [x.code for x in own])
        self._program: Program | None = None

    def _tables(self, asked: Asked, own: Sequence[Solved]) -> list[Tensor]:
        complete = [own[i] for i in asked.solver.complete]
        if not complete:
            return []
        tables = BoundedSummaries(
            [x.svd.S for x in complete],
            [x.bounds for x in complete],
            [x.norm for x in complete],
            [asked.matrices[i].shape for i in asked.solver.complete],
        )
        self.entries.append(tables)
        return [tables.out]

    def _compare(
        self,
        asked: Asked,
        solved: Sequence[Solved],
        has_vectors: bool,
        parts: dict[str, list[Tensor]],
    ) -> tuple[list[Part], list[Part]]:
        """Entries of what is compared with other steps and other matrices."""
        own = solved[: len(asked.matrices)]
        parts["alone"] = []
        if asked.clusters is None or asked.reference is None or asked.alignments is None:
            return [], []
        alignment = asked.alignments.prepared([x.svd for x in solved])
        first: list[Tensor] = []
        if has_vectors:
            lengths = [len(x.svd.S) for x in own]
            clusters = asked.clusters.prepared(lengths, [x.svd.S for x in own])
            radii = _Radii(asked, own)
            self.entries += [
                *radii.entries,
                join([x.svd.S for x in own], clusters.values),
                join(radii.out, clusters.bounds),
                clusters,
            ]
            parts["alone"] = [clusters.alone]
            first = list(torch.split(clusters.first, lengths))
        agreement = asked.reference.prepared([x.svd for x in own], first)
        self.entries += itertools.chain.from_iterable(x.entries for x in (*alignment, *agreement))
        return alignment, agreement

    def fits(self, solved: Sequence[Solved]) -> bool:
        """Whether ``solved`` lies in the memory that this was made for."""
        return self._memory.is_of(_numbers(solved))

    def run(self) -> None:
        """Fill the block."""
        if self._program is None:
            self._program = Program(self.entries, self.block.device.type)
        self._program.run()


class _Radii:
    """How far each value may be off, (r,) per matrix: the bounds that rows have."""

    def __init__(self, asked: Asked, own: Sequence[Solved]) -> None:
        self._own, self._asked = own, asked
        self.out = [x.bounds for x in own]
        self.entries: list[Entry] = []
        if asked.solver.partial:
            for i in asked.solver.partial:
                self.out[i] = torch.empty_like(own[i].bounds)
            self.entries = [self]

    def run(self) -> None:
        radii = radii_of(self._asked, self._own)
        for i in self._asked.solver.partial:
            self.out[i].copy_(radii[i])


def radii_of(asked: Asked, own: Sequence[Solved]) -> list[Tensor]:
    """How far each value of these results may be off, (r,) per matrix: the bounds that rows have.

    No number is read.
    """
    radii = [x.bounds for x in own]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in asked.solver.partial:
        x = own[i]
        kind = (len(x.svd.S), x.svd.S.dtype, asked.matrices[i].shape, x.error is None)
        groups.setdefault(kind, []).append(i)
    for (_, _, shape, is_exact), members in groups.items():
        values, norms, bounds = (
            torch.stack(parts)
            for parts in zip(
                *((own[i].svd.S, own[i].norm, own[i].bounds) for i in members), strict=True
            )
        )
        rows = leading_value_bounds(values, norms, bounds, shape)
        if not is_exact:
            rows = rows + torch.stack([own[i].error for i in members]).unsqueeze(-1)  # type: ignore[misc]
        for i, row in zip(members, rows, strict=True):
            radii[i] = row
    return radii


def _numbers(solved: Sequence[Solved]) -> list[Tensor]:
    """The tensors of results that the entries read."""
    return [
        x
        for entry in solved
        for x in (*entry.svd, entry.bounds, entry.norm, entry.code, entry.error)
        if x is not None
    ]
