"""The matrices of a step as they are now, and what stands for those that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from spectral_monitor.model.matrix import Kept, Matrix, UnreadableMatrixError
from torch import Tensor

from spectral_kernels.entry.results import Decomposed

__all__ = ["Readings", "not_readable", "told"]


class Readings:
    """Reads matrices step by step.

    One that cannot be read now is NaN, of the dtype and on the device that it last had: its row is
    NaN, what solvers keep of it stays, and all others are as ever. It comes back by itself.

    Args:
        matrices: those under watch.
        parts: of these, see `model.submatrices`; they have no reasons of their own.
    """

    def __init__(self, matrices: Sequence[Matrix], parts: Sequence[Matrix] = ()) -> None:
        self._parts = {part.name for part in parts}
        self._all = [*matrices, *parts]
        self._kinds = [(matrix.dtype, matrix.device) for matrix in self._all]
        self._warned: set[str] = set()
        self.last: list[Kept] = []
        """All matrices, then parts, in order, as `take` found them."""
        self.reasons: dict[str, str] = {}
        """Name -> why it could not be read then, of those that could not."""

    def take(self) -> list[Kept]:
        """All matrices as they are now; warns of those that cannot be read, once for a reason."""
        self.reasons = {}
        self.last = [self._read(i, matrix) for i, matrix in enumerate(self._all)]
        new = {n: why for n, why in self.reasons.items() if why not in self._warned}
        if new:
            self._warned.update(new.values())
            warnings.warn(f"not measured, until they can be read: {told(new)}", stacklevel=_IN_STEP)
        return self.last

    def forget(self) -> None:
        """Let go of copies among the matrices; the reasons stay."""
        self.last = []

    def _read(self, i: int, matrix: Matrix) -> Kept:
        try:
            kept = matrix.read()
        except UnreadableMatrixError as error:
            if matrix.name not in self._parts:
                self.reasons[matrix.name] = error.reason
            return _unknown(matrix, *self._kinds[i])
        one = kept if isinstance(kept, Tensor) else kept.U
        self._kinds[i] = one.dtype, one.device
        return kept


# From `Readings.take` through `SpectralMonitor._measure` and `step` to their caller.
_IN_STEP = 4


def _unknown(matrix: Matrix, dtype: torch.dtype, device: torch.device) -> Kept:
    """NaN in the place of a matrix; it takes the memory of one number."""
    nan = torch.full((), torch.nan, dtype=dtype, device=device)
    (m, n), k = matrix.shape, matrix.inner
    if k is None:
        return nan.expand(m, n)
    return Decomposed(nan.expand(m, k), nan.expand(k, k), nan.expand(k, n))


def not_readable(matrices: Sequence[Matrix]) -> dict[str, str]:
    """Name -> why it cannot be read now, of those that cannot."""
    reasons: dict[str, str] = {}
    for matrix in matrices:
        try:
            matrix.read()
        except UnreadableMatrixError as error:
            reasons[matrix.name] = error.reason
    return reasons


def told(reasons: Mapping[str, str]) -> str:
    """Names by reason, in one line: ``a.weight and 3 more: is a DTensor, ...``."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return "; ".join(
        names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f": {reason}"
        for reason, names in groups.items()
    )
