"""The part of ``SpectrumTracker`` that follows k leading triplets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.tracking.late import LateFlags
from spectral_kernels.tracking.leading.late import LatePlan, copied
from spectral_kernels.tracking.leading.shapes import nothing, unflatten
from spectral_kernels.tracking.leading.state import WORK, Block, LeadingResult, Randomness

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


class LeadingTracker:
    """k leading triplets of each of many tensors on one device, from update to update.

    Args:
        k: how many; a matrix with fewer singular values gives them all.
        tolerance: as for ``SpectrumTracker``.
        reuse_buffers: the same, for updates on a GPU.
    """

    def __init__(self, k: int, tolerance: float, *, reuse_buffers: bool = False) -> None:
        self.k = k
        self.tolerance = tolerance
        self.reuse_buffers = reuse_buffers
        self.reset()

    def reset(self) -> None:
        """Forget vectors and counts."""
        self._blocks: list[Block] = []
        self._updates = 0
        self.resolves = 0
        self._plan: LatePlan | None = None
        self._flags: LateFlags | None = None

    def update(self, tensors: list[Tensor]) -> list[LeadingResult]:
        """Return the triplets of each tensor (..., m, n), with its batch dimensions."""
        if not self._blocks:
            self._blocks = [self._cold(A) for A in tensors]
        device = tensors[0].device
        for A, block in zip(tensors, self._blocks, strict=True):
            # A state loaded from a file may be elsewhere; matrices may have another dtype now, and
            # kernels write vectors of theirs.
            block.vectors = block.vectors.to(device, result_dtype(A.dtype))
        widths = [self._width(A.shape) for A in tensors]
        if LatePlan.takes(tensors, widths):
            return self._update_late(tensors)
        self._leave_device()
        before = [warm for block in self._blocks for warm in block.warm]
        filled = [i for i, A in enumerate(tensors) if A.numel()]
        results = [nothing(A, self._rank(A)) for A in tensors]
        if filled:
            flat = [tensors[i].reshape(-1, *tensors[i].shape[-2:]) for i in filled]
            found = dispatch.backend("tracking.leading", device.type).track(
                flat,
                [self._blocks[i] for i in filled],
                [self._rank(tensors[i]) for i in filled],
                [self._random(tensors[i]) for i in filled],
                self.tolerance,
            )
            for i, result in zip(filled, found, strict=True):
                results[i] = unflatten(result, tensors[i])
        self._updates += 1
        work = [entry for result in results for entry in result.work]
        self.resolves += sum(
            warm and entry == WORK[0] for warm, entry in zip(before, work, strict=True)
        )
        return results

    def _update_late(self, tensors: list[Tensor]) -> list[LeadingResult]:
        """Update on a device that is not waited for."""
        plan = self._plan
        if plan is None or not plan.fits(tensors):
            self._leave_device()
            ks = [self._rank(A) for A in tensors]
            schedule = (self._updates, _UPDATES_PER_REFRESH)
            plan = self._plan = LatePlan(tensors, self._blocks, ks, self.tolerance, schedule)
            self._flags = LateFlags(plan.counts, tensors[0].device)
        assert self._flags is not None
        self.resolve(self._flags.heard())
        found = plan.run()
        self._flags.send(plan.lost)
        results = [
            nothing(A, self._rank(A)) if one is None else unflatten(one, A)
            for one, A in zip(found, tensors, strict=True)
        ]
        return results if self.reuse_buffers else [copied(result) for result in results]

    def _leave_device(self) -> None:
        """Take back what updates without waiting keep on the device; waits for it."""
        if self._plan is not None:
            self._updates = self._plan.take_back(self._blocks)
        self._plan = self._flags = None

    def resolve(self, which: Sequence[Sequence[int]]) -> None:
        """Start blocks anew for the next update on a GPU; elsewhere an update does it itself.

        Raises:
            ValueError: not an entry for each tensor.
        """
        if len(which) != len(self._blocks):
            raise ValueError(f"which has {len(which)} entries; expected {len(self._blocks)}")
        if self._plan is not None and any(which):
            self.resolves += sum(map(len, which))
            self._plan.resolve(which)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the next update needs.

        ``vectors`` (one (B, n, l) tensor per entry of the list), ``identities`` (one (B, l + 1)
        int64 tensor), ``warm``, ``updates`` (which seeds the random columns) and ``resolves``.
        """
        late = self._plan
        return {
            "k": self.k,
            "vectors": [block.vectors.clone() for block in self._blocks],
            "identities": [block.identities.to("cpu", copy=True) for block in self._blocks],
            "warm": [block.started() if late else list(block.warm) for block in self._blocks],
            "updates": late.updates() if late else self._updates,
            "resolves": self.resolves,
        }

    def load_state_dict(self, state: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
        """Go on from a ``state_dict()`` of matrices of these shapes.

        Raises:
            ValueError: another k, or vectors that do not fit the shapes or are not finite.
        """
        if state["k"] != self.k:
            raise ValueError(f"state is of k = {state['k']}; expected k = {self.k}")
        blocks = []
        entries = (state["vectors"], state["identities"], state["warm"])
        for i, (shape, V, numbers, warm) in enumerate(zip(shapes, *entries, strict=True)):
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
            dtype = result_dtype(V.dtype)
            vectors = V.detach().to(dtype, copy=True).contiguous()
            identities = numbers.detach().to("cpu", torch.int64, copy=True).contiguous()
            blocks.append(Block(vectors, identities, [bool(x) for x in warm]))
        self.reset()
        self._blocks = blocks
        self._updates, self.resolves = int(state["updates"]), int(state["resolves"])

    def _rank(self, A: Tensor) -> int:
        m, n = A.shape[-2:]
        return min(self.k, m, n)

    def _width(self, shape: tuple[int, ...]) -> int:
        return block_width(self.k, shape[-2], shape[-1])

    def _cold(self, A: Tensor) -> Block:
        count, width = math.prod(A.shape[:-2]), self._width(A.shape)
        vectors = A.new_zeros((count, A.shape[-1], width), dtype=result_dtype(A.dtype))
        return Block(vectors, torch.zeros(count, width + 1, dtype=torch.int64), [False] * count)

    def _random(self, A: Tensor) -> Randomness:
        n, width, dtype = A.shape[-1], self._width(A.shape), result_dtype(A.dtype)
        # Where the block is everything there is nothing to look for.
        search = width < min(A.shape[-2:]) and self._updates % _UPDATES_PER_REFRESH == 0
        count = (width - self._rank(A)) // 2 if search and self._updates else 0
        fresh = _columns(n, count, self._updates).to(dtype)
        return Randomness(_start(n, width, dtype).to(A.device), fresh.to(A.device))


def _columns(n: int, count: int, seed: int) -> Tensor:
    """Return (n, count) standard normal numbers: the same for every matrix with n columns."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + n) % 2**63)
    return torch.randn(n, count, generator=generator)


@lru_cache(maxsize=64)
def _start(n: int, width: int, dtype: torch.dtype) -> Tensor:
    return _columns(n, width, 0).to(dtype)
