"""What is carried from step to step of leading triplets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.tracking.results import SOLVED, Tracked, Updates

WORK = ("kept", "one iteration", "two iterations", "three iterations", "solved")
"""What an update did to a matrix, by its code: never nothing; "solved" is a new start."""

WARM_ITERATIONS = 3
COLD_ITERATIONS = 16
SETTLED = 0.1
"""The part of the tolerance by which the last half step may have moved a value."""
UNSETTLED = 1.0
"""A value that still moves by this part of it in the last warm iteration was not being followed."""
PROGRESS = 0.5
"""An iteration more than the values need must halve the bounds, or is the last."""

_OVERSAMPLE = 8
# Blocks are a multiple of the widest vector of floats: products cost the same for less.
_WIDTH_STEP = 16
# Fresh columns live for this many updates: in a flat spectrum a single one does not lift a
# direction of the tail above what the block holds already, and replacing columns at every update
# costs the last values their convergence (measured; tests/tracking/test_leading.py).
_UPDATES_PER_REFRESH = 3


def block_width(k: int, m: int, n: int) -> int:
    """Return l: k, oversampled, a multiple of the vector length, at most min(m, n)."""
    wide = -(-(k + _OVERSAMPLE) // _WIDTH_STEP) * _WIDTH_STEP
    return min(wide, m, n)


@dataclass
class Block:
    """The vectors of a batch of B matrices (m, n).

    ``vectors`` (B, n, l), float64 for float64 matrices, else float32: the first k columns are the
    last right singular vectors, the others what comes after them. ``identities`` (B, l + 1)
    int64: the number of every column, and the first that is still free. ``warm`` says
    for each matrix whether there are vectors yet. ``late``: updates on a GPU hold all of it there,
    and ``warm`` is not kept.
    """

    vectors: Tensor
    identities: Tensor
    warm: list[bool]
    late: bool = False

    def started(self) -> list[bool]:
        """Return for each matrix whether there are vectors yet, asking a GPU where it must."""
        if not self.late:
            return list(self.warm)
        # The first numbers are given with the first vectors.
        return [bool(number > 0) for number in self.identities[:, -1].tolist()]

    def to_host(self, like: Tensor) -> None:
        """Take everything back from a GPU; vectors go where ``like`` is, in the dtype of results.

        A state loaded from a file may be elsewhere; matrices may have another dtype now.
        """
        self.warm[:], self.late = self.started(), False
        self.vectors = self.vectors.to(like.device, result_dtype(like.dtype))
        self.identities = self.identities.cpu()


@dataclass
class Schedule:
    """When random columns are drawn: they are fresh at every ``every``-th update.

    ``updates``: how many there were, a number; (1,) int64 on the device where updates are counted
    there, which graphs replay.
    """

    updates: int | Tensor = 0
    every: int = _UPDATES_PER_REFRESH

    def columns(self, A: Tensor, width: int, k: int) -> Randomness:
        """Return the random columns of an update of batches like ``A`` (B, m, n)."""
        updates = int(self.updates)
        n, dtype = A.shape[-1], result_dtype(A.dtype)
        # Where the block is everything there is nothing to look for.
        search = width < min(A.shape[-2:]) and updates % self.every == 0
        count = (width - k) // 2 if search and updates else 0
        fresh = _columns(n, count, updates).to(dtype)
        return Randomness(_start(n, width, dtype).to(A.device), fresh.to(A.device))


class Randomness(NamedTuple):
    """Random columns: ``start`` (n, l), and ``fresh`` (n, p) for the last p of a warm block."""

    start: Tensor
    fresh: Tensor


Track = Callable[[list[Tensor], list[Block], list[int], list[Randomness], float], list[Tracked]]
"""Update batches (B, m, n) and their blocks: k of each, with random columns, to a tolerance."""


class WaitingUpdates:
    """Updates that solve what they lose at once; their results lie somewhere else each time.

    Args:
        track: does one.
        matrices, blocks, ks: batches (B, m, n), their states, and how many triplets of each.
        schedule: counts the updates.
        tolerance: of the largest value.
    """

    def __init__(
        self,
        track: Track,
        matrices: list[Tensor],
        blocks: list[Block],
        ks: list[int],
        schedule: Schedule,
        tolerance: float,
    ) -> None:
        for A, block in zip(matrices, blocks, strict=True):
            block.to_host(A)
        schedule.updates = int(schedule.updates)
        self._track, self._given, self._tolerance = track, (matrices, blocks, ks), tolerance
        self._schedule = schedule

    def run(self) -> list[Tracked]:
        """Return the triplets of each batch; its block is overwritten with the new one."""
        matrices, blocks, ks = self._given
        columns = [
            self._schedule.columns(A, block.vectors.shape[-1], k)
            for A, block, k in zip(matrices, blocks, ks, strict=True)
        ]
        tracked = self._track(matrices, blocks, ks, columns, self._tolerance)
        self._schedule.updates += 1
        return tracked


class LeadingStates:
    """The states of k leading triplets; see ``plan.States``."""

    solved = WORK[SOLVED]
    late_resolves = 0

    def __init__(self, k: int) -> None:
        self._k = k
        self._blocks: list[Block] = []
        self._schedule = Schedule()

    def __len__(self) -> int:
        return len(self._blocks)

    def begin(self, tensors: list[Tensor], tolerance: float) -> None:
        """Make room for tensors (..., m, n) that have no vectors yet."""
        self._blocks = [self._cold(A) for A in tensors]

    def _cold(self, A: Tensor) -> Block:
        count, width = math.prod(A.shape[:-2]), self._width(A.shape)
        vectors = A.new_zeros((count, A.shape[-1], width), dtype=result_dtype(A.dtype))
        return Block(vectors, torch.zeros(count, width + 1, dtype=torch.int64), [False] * count)

    def _width(self, shape: tuple[int, ...]) -> int:
        return block_width(self._k, shape[-2], shape[-1])

    def _rank(self, A: Tensor) -> int:
        return min(self._k, A.shape[-2], A.shape[-1])

    def warm(self) -> list[list[bool]]:
        """Which matrices of each entry have vectors, as far as the host knows."""
        return [list(block.warm) for block in self._blocks]

    def prepare(self, matrices: list[Tensor], which: list[int], tolerance: float) -> Updates:
        """Return the updates of batches (B, m, n), which are the entries ``which``."""
        backend: Any = dispatch.backend("tracking.leading", matrices[0].device.type)
        blocks, ks = [self._blocks[i] for i in which], [self._rank(A) for A in matrices]
        updates: Updates = backend.prepare(matrices, blocks, ks, self._schedule, tolerance)
        return updates

    def nothing(self, A: Tensor) -> Tracked:
        """Return the result of a batch without entries."""
        return Tracked.nothing(A, self._rank(A), WORK[1], WORK, leading=True)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs.

        ``k``; ``vectors`` (one (B, n, l) tensor per entry of the list), ``identities`` (one
        (B, l + 1) int64 tensor), ``warm``, and ``updates`` (which seeds the random columns).
        """
        return {
            "k": self._k,
            "vectors": [block.vectors.clone() for block in self._blocks],
            "identities": [block.identities.to("cpu", copy=True) for block in self._blocks],
            "warm": [block.started() for block in self._blocks],
            "updates": int(self._schedule.updates),
        }

    def load_state_dict(self, state: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
        """Go on from a ``state_dict()`` of matrices of these shapes.

        Raises:
            ValueError: another k, or vectors that do not fit the shapes or are not finite.
        """
        if state["k"] != self._k:
            raise ValueError(f"state is of k = {state['k']}; expected k = {self._k}")
        entries = (state["vectors"], state["identities"], state["warm"])
        self._blocks = [
            self._loaded(i, *entry) for i, entry in enumerate(zip(shapes, *entries, strict=True))
        ]
        self._schedule = Schedule(int(state["updates"]))

    def _loaded(
        self, i: int, shape: tuple[int, ...], V: Tensor, numbers: Tensor, warm: list[bool]
    ) -> Block:
        """Return the block of one entry of the list, checked."""
        count, width = math.prod(shape[:-2]), self._width(shape)
        expected = (count, shape[-1], width)
        fits = tuple(V.shape) == expected and tuple(numbers.shape) == (count, width + 1)
        if not fits or len(warm) != count:
            raise ValueError(
                f"vectors[{i}] has shape {tuple(V.shape)}, identities[{i}] "
                f"{tuple(numbers.shape)} and warm[{i}] {len(warm)} entries; expected "
                f"{expected}, {(count, width + 1)} and {count} for a matrix of shape {shape}"
            )
        if not bool(V.isfinite().all()):
            raise ValueError(f"vectors[{i}] holds NaN or Inf; expected those of state_dict()")
        vectors = V.detach().to(result_dtype(V.dtype), copy=True).contiguous()
        identities = numbers.detach().to("cpu", torch.int64, copy=True).contiguous()
        return Block(vectors, identities, [bool(x) for x in warm])


def _columns(n: int, count: int, seed: int) -> Tensor:
    """Return (n, count) standard normal numbers: the same for every matrix with n columns."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + n) % 2**63)
    return torch.randn(n, count, generator=generator)


@lru_cache(maxsize=64)
def _start(n: int, width: int, dtype: torch.dtype) -> Tensor:
    return _columns(n, width, 0).to(dtype)
