"""Updates of tensors with any batch dimensions, prepared for the memory they lie in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.memory import Memory, flattened, is_view
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.runtime.program.op import Call
from spectral_kernels.tracking.state import WORK, LateUpdates, LateWork, State, Tracked, Updates


class Plan:
    """The updates of matrices that lie in the same memory each time."""

    def __init__(self, tensors: list[Tensor], states: list[State], tolerance: float) -> None:
        self._filled = [i for i, A in enumerate(tensors) if A.numel()]
        flat = self._bind(tensors)
        device = tensors[0].device
        self._found: list[Tracked] = []
        # Those of the others come with the first run.
        self._results: list[Any] = [None if A.numel() else _nothing(A) for A in tensors]
        self._updates: Updates | None = None
        self._late: LateUpdates | None = None
        if self._filled:
            backend = dispatch.backend("tracking.whole", device.type)
            self._updates = backend.prepare(flat, [states[i] for i in self._filled], tolerance)
            if isinstance(self._updates, LateUpdates):
                self._late = self._updates

    def _bind(self, tensors: list[Tensor]) -> list[Tensor]:
        """Note where these lie, and return those that are not empty as batches (B, m, n)."""
        self._memory = Memory(tensors)
        flat = [flattened(tensors[i]) for i in self._filled]
        # A batch that cannot be flattened in place was copied: such a plan is for once.
        self._in_place = all(
            is_view(A, tensors[i]) for i, A in zip(self._filled, flat, strict=True)
        )
        return flat

    @property
    def lost(self) -> Tensor | None:
        """As of `LateUpdates`; None where updates wait, and nothing is lost."""
        return None if self._late is None else self._late.lost

    @property
    def counts(self) -> list[int]:
        """How many entries of ``lost`` each tensor has."""
        return [math.prod(A.shape[:-2]) if A.numel() else 0 for A in self._memory.tensors]

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether these lie where the plan's tensors lie."""
        return self._in_place and self._memory.is_of(tensors)

    def rebind(self, tensors: list[Tensor]) -> bool:
        """Whether these take the place of those before them, without another plan."""
        alike = [_kind(A) for A in tensors] == [_kind(A) for A in self._memory.tensors]
        if self._late is None or not alike:
            return False
        self._late.rebind(self._bind(tensors))
        return True

    def resolve(self, which: Sequence[Sequence[int]]) -> None:
        """Solve matrices anew for the next run; an entry of indices for each tensor."""
        if self._late is not None and any(which):
            self._late.resolve([which[i] for i in self._filled])

    @property
    def calls(self) -> list[Call] | None:
        """What a run asks of the compiled module; None where that is not all."""
        return getattr(self._updates, "calls", None) if self._in_place else None

    def settle(self) -> tuple[bool, bool]:
        """After ``calls`` were run: whether they are others now, and whether one was solved."""
        updates: Any = self._updates
        found: tuple[bool, bool] = updates.settle()
        return found

    @property
    def results(self) -> list[Tracked]:
        """Those of the last run."""
        return self._results

    def run(self) -> list[Tracked]:
        """Update, in order; the results of the run before are overwritten."""
        found = self._updates.run() if self._updates is not None else []
        # The same buffers as last time have the same views.
        if not self._found or any(a is not b for a, b in zip(found, self._found, strict=True)):
            # A new list, by which the caller sees that the places are new.
            self._results = list(self._results)
            for i, tracked in zip(self._filled, found, strict=True):
                self._results[i] = _unflatten(tracked, self._memory.tensors[i])
            self._found = found
        return self._results


def copied(tracked: Tracked) -> Tracked:
    """Return results that the next update leaves alone."""
    svd, bounds, norms, identities, work = tracked
    if isinstance(work, LateWork):
        work = LateWork(work.codes.clone(), work.lost.clone())
    return Tracked(
        SVD(*(x.clone() for x in svd)), bounds.clone(), norms.clone(), identities.clone(), work
    )


def _kind(A: Tensor) -> tuple[Any, ...]:
    return A.dtype, A.shape, A.device


def _nothing(A: Tensor) -> Tracked:
    """Return the factors of a batch without entries, by the shape it has."""
    *batch, m, n = A.shape
    r = min(m, n)
    dtype = result_dtype(A.dtype)
    svd = SVD(
        A.new_zeros((*batch, r, m), dtype=dtype).mT,
        A.new_zeros((*batch, r), dtype=dtype),
        A.new_zeros((*batch, r, n), dtype=dtype),
    )
    return Tracked(
        svd,
        A.new_zeros((*batch, r), dtype=torch.float64),
        A.new_zeros(batch, dtype=torch.float64),
        A.new_zeros((*batch, r), dtype=torch.int64),
        [WORK[0]] * math.prod(batch),
    )


def _unflatten(tracked: Tracked, A: Tensor) -> Tracked:
    """Return one update with the batch dimensions of ``A``."""
    *batch, m, n = A.shape
    r = min(m, n)
    U, S, Vh = tracked.svd
    Ut = U.mT.reshape(*batch, r, m)
    return Tracked(
        SVD(Ut.mT, S.reshape(*batch, r), Vh.reshape(*batch, r, n)),
        tracked.bounds.reshape(*batch, r),
        tracked.error_norms.reshape(batch),
        tracked.identities.reshape(*batch, r),
        tracked.work,
    )
