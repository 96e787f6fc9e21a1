"""Buffers of updates on a GPU: matrices of one shape together, whatever tensors they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.tracking.whole.state import State

# Of the products of a chunk of matrices. Larger chunks fill the device no better: products of side
# 768 have 36 tiles of 128 x 128 for each matrix. Not measured.
_CHUNK_BYTES = 1 << 29

# What a grid and the offsets of a batch stay far below.
_MOST_MATRICES = 1 << 15


@dataclass(frozen=True)
class Member:
    """Part of a group: the matrices of one batch (B, m, n), from ``start`` on."""

    entry: int
    start: int
    count: int
    tall: bool


@dataclass
class Group:
    """G matrices with sides M >= r and one type of results, and all that outlives an update.

    ``vectors`` (G, r, r), ``drift`` (G,) and ``names`` (G, r + 1) are the states, ``fresh`` (G,)
    int32 says of which the vectors were solved anew since the last update. ``long`` (G, r, M) and
    ``short`` (G, r, r) are the vectors that are returned, as rows. ``slots`` (G, 3), ``scales``
    (G, 2) float64: see ``triton_output_kernels.outcome``.
    """

    long_side: int
    r: int
    dtype: torch.dtype
    device: torch.device
    members: list[Member] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(member.count for member in self.members)

    def allocate(self, states: list[State], slots: list[list[int]]) -> None:
        """Take the states of all members over; they are views of these buffers from now on."""
        count, r, M = len(self), self.r, self.long_side
        wide: Any = {"dtype": torch.float64, "device": self.device}
        self.vectors = torch.eye(r, **wide).repeat(count, 1, 1)
        self.drift = torch.zeros(count, **wide)
        self.names = torch.zeros((count, r + 1), dtype=torch.int64, device=self.device)
        self.fresh = torch.zeros(count, dtype=torch.int32, device=self.device)
        # Not a number where there are no vectors yet.
        self.long = torch.full((count, r, M), float("nan"), dtype=self.dtype, device=self.device)
        self.short = torch.empty((count, r, r), dtype=self.dtype, device=self.device)
        self.slots = torch.tensor(slots, dtype=torch.int64).to(self.device)
        self.scales = torch.ones((count, 2), **wide)
        for member in self.members:
            self._adopt(states[member.entry], self.part(member))

    def _adopt(self, state: State, here: slice) -> None:
        # Where there are no vectors yet, those of the identity are as good as any.
        for i, started in enumerate(state.started()):
            if started:
                self.vectors[here][i] = state.vectors[i]
                self.drift[here][i] = state.drift[i]
                self.names[here][i] = state.names[i]
        if state.late_resolves is None:
            state.late_resolves = torch.zeros((), dtype=torch.int64, device=self.device)
        state.vectors = self.vectors[here]
        state.drift, state.names = self.drift[here], self.names[here]

    def part(self, member: Member) -> slice:
        """Where a member is in the group."""
        return slice(member.start, member.start + member.count)

    def svd(self, member: Member, S: Tensor) -> SVD:
        """The results of a member, views, with its values S (B, r)."""
        here = self.part(member)
        long, short = self.long[here], self.short[here]
        return SVD(long.mT, S, short) if member.tall else SVD(short.mT, S, long)

    def chunks(self) -> Iterator[slice]:
        """Stretches of the group whose products fit the workspace."""
        each = 8 * workspace_length(1, self.long_side, self.r)
        most = max(1, min(_CHUNK_BYTES // each, _MOST_MATRICES))
        for start in range(0, len(self), most):
            yield slice(start, min(start + most, len(self)))


def workspace_length(count: int, M: int, r: int) -> int:
    """Return how many float64 numbers the products of ``count`` matrices need."""
    return count * (2 * M * r + 5 * r * r)


class Workspace:
    """What a chunk of n matrices needs during an update; other chunks use the same memory.

    X and W (n, M, r), S, E, R, N, V (n, r, r): see ``triton_steps``.
    """

    def __init__(self, memory: Tensor, n: int, M: int, r: int) -> None:
        sizes = [n * M * r] * 2 + [n * r * r] * 5
        parts = torch.split(memory[: sum(sizes)], sizes)
        self.X, self.W = (part.view(n, M, r) for part in parts[:2])
        self.S, self.E, self.R, self.N, self.V = (part.view(n, r, r) for part in parts[2:])
        # The long vectors before they are narrowed.
        self.rows = parts[1].view(n, r, M)


def grouped(matrices: list[Tensor]) -> list[Group]:
    """Return groups of batches (B, m, n) that share their sides and the type of results."""
    groups: dict[tuple[int, int, torch.dtype], Group] = {}
    for entry, A in enumerate(matrices):
        count, m, n = A.shape
        key = (max(m, n), min(m, n), result_dtype(A.dtype))
        group = groups.setdefault(key, Group(*key, A.device))
        group.members.append(Member(entry, len(group), count, tall=m >= n))
    return list(groups.values())
