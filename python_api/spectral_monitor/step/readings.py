"""The matrices of a step as they are now, and what stands for those that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from spectral_monitor.model.matrix import Kept, Matrix, UnreadableMatrixError, tensors_of
from torch import Tensor

from spectral_kernels.entry.results import Decomposed
from spectral_kernels.runtime.memory import place


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
        # Parts share the getter of the matrix that they are parts of.
        self._getters = list({id(m.get): m.get for m in self._all}.values())
        self._owners: list[_Owner] = []
        self._warned: set[str] = set()
        self.last: list[Kept] = []
        """All matrices, then parts, in order, as `take` found them."""
        self.reasons: dict[str, str] = {}
        """Name of a matrix that `take` could not read -> why."""
        self.stayed = False
        """Whether `take` found the very same memory as the time before."""

    def take(self) -> list[Kept]:
        """All matrices as they are now; warns of those that cannot be read, once for a reason.

        Where every parameter is the tensor that it was, in the memory where it was, the views of
        the time before are those of now.
        """
        self.stayed = bool(self._owners) and self._owners == [
            _owner(get()) for get in self._getters
        ]
        if self.stayed:
            return self.last
        self.reasons = {}
        self.last = [self._read(i, matrix) for i, matrix in enumerate(self._all)]
        self._owners = self._lasting()
        new = {n: why for n, why in self.reasons.items() if why not in self._warned}
        if new:
            self._warned.update(new.values())
            warnings.warn(
                f"not measured, until they can be read: {by_reason(new)}", stacklevel=_IN_STEP
            )
        return self.last

    def forget(self) -> None:
        """Let go of copies among the matrices; the reasons stay."""
        if not self._owners:
            self.last = []

    def _lasting(self) -> list[_Owner]:
        """The parameters that all matrices are views of; none where one is a copy, or NaN."""
        if self.reasons or any(m.form == "effective" for m in self._all):
            return []
        for matrix, kept in zip(self._all, self.last, strict=True):
            owned = _Owner(matrix.get()).storages
            if not all(x.untyped_storage().data_ptr() in owned for x in tensors_of(kept)):
                return []
        return [_Owner(get()) for get in self._getters]

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


# From `take` through that of `OwnStep`, `SpectralMonitor._measure` and `step` to their caller.
_IN_STEP = 5


class _Owner:
    """A parameter, or the factors of a decomposed layer, and where the values are."""

    __slots__ = ("places", "tensors")

    def __init__(self, kept: Kept | None) -> None:
        self.tensors = tensors_of(kept)
        self.places = [place(x) for x in self.tensors]

    def __eq__(self, other: object) -> bool:
        # Of tensors == is an operation on their entries.
        return (
            isinstance(other, _Owner)
            and self.places == other.places
            and all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def storages(self) -> set[int]:
        """Addresses of the memory of all its values."""
        return {x.untyped_storage().data_ptr() for x in self.tensors}


def _owner(kept: Kept | None) -> _Owner | None:
    """The owner of a tensor; None of one without memory of its own, such as a sparse one."""
    try:
        return _Owner(kept)
    except (RuntimeError, NotImplementedError):
        return None


def _unknown(matrix: Matrix, dtype: torch.dtype, device: torch.device) -> Kept:
    """NaN in the place of a matrix; it takes the memory of one number."""
    nan = torch.full((), torch.nan, dtype=dtype, device=device)
    (m, n), k = matrix.shape, matrix.inner
    if k is None:
        return nan.expand(m, n)
    return Decomposed(nan.expand(m, k), nan.expand(k, k), nan.expand(k, n))


def not_readable(matrices: Sequence[Matrix]) -> dict[str, str]:
    """Name of a matrix that cannot be read now -> why."""
    reasons: dict[str, str] = {}
    for matrix in matrices:
        try:
            matrix.read()
        except UnreadableMatrixError as error:
            reasons[matrix.name] = error.reason
    return reasons


def by_reason(reasons: Mapping[str, str]) -> str:
    """Names by reason, in one line: ``a.weight and 3 more: is a DTensor, ...``."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return "; ".join(
        names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f": {reason}"
        for reason, names in groups.items()
    )
