"""Updates of tensors with any batch dimensions, prepared for the memory they lie in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels import dispatch
from spectral_kernels.numerics import result_dtype
from spectral_kernels.results import SVD
from spectral_kernels.tracking.state import WORK, State, Tracked, Updates


class Plan:
    """The updates of matrices that lie in the same memory each time."""

    def __init__(self, tensors: list[Tensor], states: list[State], tolerance: float) -> None:
        self._places = [_place(A) for A in tensors]
        self._tensors = tensors
        flat = [A.reshape(-1, *A.shape[-2:]) if A.numel() else A for A in tensors]
        # A batch that cannot be flattened in place was copied: such a plan is for once.
        self._in_place = all(
            A.data_ptr() == B.data_ptr() for A, B in zip(tensors, flat, strict=True)
        )
        device = tensors[0].device
        self._filled = [i for i, A in enumerate(flat) if A.numel()]
        self._found: list[Tracked] = []
        self._results = [_nothing(A) for A in tensors]
        self._updates: Updates | None = None
        if self._filled:
            self._updates = dispatch.backend("tracking", device.type).prepare(
                [flat[i] for i in self._filled], [states[i] for i in self._filled], tolerance
            )

    @property
    def lost(self) -> Tensor | None:
        """As of `Updates`."""
        return None if self._updates is None else self._updates.lost

    @property
    def counts(self) -> list[int]:
        """How many entries of ``lost`` each tensor has."""
        return [math.prod(A.shape[:-2]) if A.numel() else 0 for A in self._tensors]

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether these lie where the plan's tensors lie."""
        return self._in_place and self._places == [_place(A) for A in tensors]

    def resolve(self, which: Sequence[Sequence[int]]) -> None:
        """Solve matrices anew for the next run; an entry of indices for each tensor."""
        if self._updates is not None and any(which):
            self._updates.resolve([which[i] for i in self._filled])

    def run(self) -> list[Tracked]:
        """Update, in order; the results of the run before are overwritten."""
        found = self._updates.run() if self._updates is not None else []
        # The same buffers as last time have the same views.
        if not self._found or any(a is not b for a, b in zip(found, self._found, strict=True)):
            # A new list, by which the caller sees that the places are new.
            self._results = list(self._results)
            for i, tracked in zip(self._filled, found, strict=True):
                self._results[i] = _unflatten(tracked, self._tensors[i])
            self._found = found
        return self._results


def _place(A: Tensor) -> tuple[Any, ...]:
    return A.data_ptr(), A.dtype, A.shape, A.stride(), A.device


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
