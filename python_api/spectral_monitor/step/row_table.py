"""Rows of a frame in a few arrays, each row made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.step.frame import Array, MatrixRow
from spectral_monitor.step.joined_arrays import JoinedArrays, consecutive

NOT_FINITE = "the matrix has NaN or infinity in it"
"""`spectral_monitor.step.frame.MatrixRow.reason`, where the numbers themselves are not finite."""

RowIdentity = tuple[str, tuple[int, int], str, str]
"""Name, shape, kind and method of a row."""


class RowPlan(NamedTuple):
    """Names, shapes and kinds of rows, which are the same at every step; one entry per matrix."""

    identity: list[RowIdentity]
    sides: Array
    """The short sides."""
    numbers: dict[str, int]
    slices: dict[str, slice]
    """Name -> where the singular values of the matrix are in the block of all."""

    @staticmethod
    def of(matrices: Sequence[Matrix], method: str, lengths: Sequence[int]) -> RowPlan:
        """The plan of rows whose spectra have these lengths."""
        names = [matrix.name for matrix in matrices]
        return RowPlan(
            [(m.name, m.shape, m.kind, method) for m in matrices],
            np.array([min(m.shape) for m in matrices], dtype=np.float64),
            {name: i for i, name in enumerate(names)},
            consecutive(names, lengths),
        )


class RowTable(Mapping[str, MatrixRow]):
    """Rows by name.

    Args:
        plan: of the matrices, all of one method.
        values, bounds: (total,) singular values and bounds of their errors.
        tables: (2, matrices, 7) float64: the metrics, and their bounds.
        finite, work: see `spectral_monitor.step.frame.MatrixRow`.
    """

    def __init__(
        self,
        plan: RowPlan,
        values: Array,
        bounds: Array,
        tables: Array,
        finite: Sequence[bool],
        work: Sequence[str],
    ) -> None:
        self.plan, self.tables = plan, tables
        self.values_of = JoinedArrays(values, plan.slices)
        self.bounds_of = JoinedArrays(bounds, plan.slices)
        self.finite, self.work = finite, work
        self.reasons: Mapping[str, str] = {}
        self._made: dict[str, MatrixRow] = {}

    @property
    def bounds_follow(self) -> bool:
        """Whether `MatrixRow.bounds_follow` is so of every row."""
        return self.plan.identity[0][3] == "exact" and self.values_of.block.dtype == np.float32

    def __getitem__(self, name: str) -> MatrixRow:
        row = self._made.get(name)
        if row is None:
            i = self.plan.numbers[name]
            metrics, bounds = self.tables[:, i].tolist()
            row = self._made[name] = make_row(
                self.plan.identity[i], self.finite[i], self.work[i],
                self.values_of[name], self.bounds_of[name], metrics, bounds,
                self.reasons.get(name, ""),
            )  # fmt: skip
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.numbers)

    def __len__(self) -> int:
        return len(self.plan.numbers)

    def __repr__(self) -> str:
        return f"RowTable({list(self)})"


def spectra_of(
    rows: Mapping[str, MatrixRow], names: Sequence[str]
) -> tuple[JoinedArrays[str], JoinedArrays[str]]:
    """Singular values and bounds of these matrices."""
    if isinstance(rows, RowTable):
        return rows.values_of, rows.bounds_of
    return (
        JoinedArrays.of({name: rows[name].singular_values for name in names}),
        JoinedArrays.of({name: rows[name].singular_value_bounds for name in names}),
    )


def tell_reasons(rows: Mapping[str, MatrixRow], reasons: Mapping[str, str]) -> None:
    """Say why rows have no numbers, where that is not for what is in the matrices."""
    if isinstance(rows, RowTable):
        rows.reasons = dict(reasons)
        return
    for name, reason in reasons.items():
        rows[name].reason = reason


def reasons_of(rows: Mapping[str, MatrixRow]) -> dict[str, str]:
    """Name -> `spectral_monitor.step.frame.MatrixRow.reason`, of those that have one."""
    if isinstance(rows, RowTable):
        if all(rows.finite):
            return {}
        unknown = [name for name, ok in zip(rows, rows.finite, strict=True) if not ok]
        return {name: rows.reasons.get(name, NOT_FINITE) for name in unknown}
    return {name: row.reason for name, row in rows.items() if row.reason}


def make_row(
    identity: RowIdentity,
    finite: bool,
    work: str,
    values: Array,
    value_bounds: Array,
    metrics: Sequence[float],
    bounds: Sequence[float],
    reason: str = "",
) -> MatrixRow:
    """A row from its numbers, metrics and bounds in the order of ``METRICS``.

    ``reason``: why it is not finite, where that is not for its numbers.
    """
    name, shape, kind, method = identity
    entropy, exponential, stable, rank, spectral, nuclear, frobenius = metrics
    return MatrixRow(
        name, shape, kind, method, finite, work, values, value_bounds,
        entropy, exponential, stable, rank, spectral, nuclear, frobenius, bounds,
        "" if finite else reason or NOT_FINITE,
    )  # fmt: skip
