"""Fields of a frame from the block of numbers that a step fills, see `step.derived`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from spectral_monitor.step.clusters import shown
from spectral_monitor.step.derived import Asked, Layout
from spectral_monitor.step.frame import MatrixRow
from spectral_monitor.step.joined_arrays import Array, JoinedArrays, consecutive
from spectral_monitor.step.leading_rows import leading_rows
from spectral_monitor.step.overflow import table_anew
from spectral_monitor.step.row_table import RowPlan, RowTable, make_row

from spectral_kernels.entry.results import METRICS
from spectral_kernels.tracking.results import NOT_FINITE, SOLVED


class Unpacking:
    """Turns blocks of one layout into fields of frames.

    Args:
        asked, layout: those that the blocks are of.
        k: how many vectors of each matrix take part.
        is_now: whether the matrices still are what the numbers are of. Those with values beyond
            the range of their type are then read again and solved from scratch.
    """

    def __init__(self, asked: Asked, layout: Layout, k: int, *, is_now: bool) -> None:
        self._matrices, self._solver = asked.matrices, asked.solver
        self._layout, self._is_now = layout, is_now
        names = [matrix.name for matrix in asked.matrices]
        self._spectra = consecutive(names, layout.lengths)
        self._identities = consecutive(names, layout.identities) if layout.identities else {}
        counts = [min(k, *both) for both in zip(layout.lengths, layout.vectors, strict=True)]
        self._first, self._shown = shown(self._spectra, counts)
        self._dtypes = [torch.empty(0, dtype=x).numpy().dtype for x in layout.dtypes]
        self._work = [self._solver.work_names(i) for i in range(len(names))]
        self._not_finite = NOT_FINITE if self._solver.method == "tracked" else ""
        self._plan = RowPlan.of(asked.matrices, self._solver.method, layout.lengths)
        # Where all rows are of one kind, they are made when they are looked at.
        self._is_packed = len(set(self._dtypes)) == 1 and not self._solver.partial
        self._alignment = [key for slices, _ in layout.alignment for key in slices]
        if asked.alignments is not None:
            self._alignment = asked.alignments.keys
        self._agreement = [name for name in names if any(name in s for s, _ in layout.agreement)]

    def lost(self, numbers: Array) -> list[int]:
        """The matrices, and parts after them, whose bounds exceed the tolerance."""
        lost: list[int] = np.flatnonzero(numbers[self._layout.places["lost"]]).tolist()
        return lost

    def scalars(self, numbers: Array) -> list[float]:
        """The caller's numbers, and zeros in the room that is left."""
        values: list[float] = numbers[self._layout.places["scalars"]].tolist()
        return values

    def fields(self, numbers: Array, anew: Sequence[int] = ()) -> dict[str, Any]:
        """Fields of the frame; ``anew``: matrices that were solved anew before the step."""
        part = {name: numbers[place] for name, place in self._layout.places.items()}
        single, whole = self._agreements(part["agreement"])
        return {
            "matrices": self._rows(part, anew),
            "alignment": _by_name(part["alignment"], self._layout.alignment, self._alignment),
            "agreement": single,
            "subspace_agreement": whole,
            "identifiable": JoinedArrays(part["alone"][self._first] != 0, self._shown)
            if len(part["alone"])
            else {},
            "identities": JoinedArrays(part["identities"].astype(np.int64), self._identities),
        }

    def _agreements(self, numbers: Array) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Agreement of single vectors, and of the subspaces of clusters, by name."""
        rows: tuple[list[Array], list[Array]] = ([], [])
        at = 0
        for slices, _ in self._layout.agreement:
            length = sum(place.stop - place.start for place in slices.values())
            for row in rows:
                row.append(numbers[at : at + length])
                at += length
        single, whole = (np.concatenate(row) if row else numbers[:0] for row in rows)
        layout = self._layout.agreement
        return _by_name(single, layout, self._agreement), _by_name(whole, layout, self._agreement)

    def rows(self, numbers: Array) -> Mapping[str, MatrixRow]:
        """The rows alone."""
        return self._rows({n: numbers[at] for n, at in self._layout.places.items()}, ())

    def _rows(self, part: Mapping[str, Array], anew: Sequence[int]) -> Mapping[str, MatrixRow]:
        codes = part["codes"].astype(np.int64).tolist()
        # Where the vectors come from a solution they need no work.
        for i in anew:
            # Parts have no codes.
            if i < len(codes) and codes[i] >= 0:
                codes[i] = SOLVED
        finite = [code >= 0 for code in codes]
        names_and_codes = zip(self._work, codes, strict=True)
        work = [names[code] if code >= 0 else self._not_finite for names, code in names_and_codes]
        complete = self._solver.complete
        tables = part["tables"].reshape(2, len(complete), len(METRICS))
        if self._is_now:
            self._mend(tables, part["values"], finite)
        if self._is_packed:
            values = part["values"].astype(self._dtypes[0])
            return RowTable(self._plan, values, part["bounds"], tables, finite, work)
        spectra = JoinedArrays(part["values"], self._spectra)
        bounds = JoinedArrays(part["bounds"], self._spectra)
        rows = {
            name: make_row(
                self._plan.identity[i], finite[i], work[i], spectra[name].astype(self._dtypes[i]),
                bounds[name], *tables[:, row].tolist(),
            )
            for row, (i, name) in enumerate((i, self._matrices[i].name) for i in complete)
        }  # fmt: skip
        rows |= self._leading(part, spectra, bounds, finite, work)
        return {matrix.name: rows[matrix.name] for matrix in self._matrices}

    def _mend(self, tables: Array, values: Array, finite: Sequence[bool]) -> None:
        """Solve finite matrices anew whose values are beyond the range of their type."""
        for row in np.flatnonzero(np.isnan(tables[0]).any(axis=-1)).tolist():
            i = self._solver.complete[row]
            name = self._matrices[i].name
            if finite[i] and bool(np.isinf(values[self._spectra[name]]).any()):
                tables[:, row] = table_anew(self._matrices[i])

    def _leading(
        self,
        part: Mapping[str, Array],
        spectra: JoinedArrays[str],
        bounds: JoinedArrays[str],
        finite: Sequence[bool],
        work: Sequence[str],
    ) -> dict[str, MatrixRow]:
        own = self._solver.partial
        if not own:
            return {}
        names = [self._matrices[i].name for i in own]
        errors = dict(zip(self._layout.errors, part["errors"].tolist(), strict=True))
        dtypes = [self._dtypes[i] for i in own]
        return leading_rows(
            [self._matrices[i] for i in own],
            self._solver.method,
            [torch.from_numpy(spectra[n].astype(t)) for n, t in zip(names, dtypes, strict=True)],
            torch.from_numpy(part["norms"].copy()),
            finite=[finite[i] for i in own],
            work=[work[i] for i in own],
            bounds=[torch.from_numpy(bounds[name].copy()) for name in names],
            errors=[errors.get(i, 0.0) for i in own],
            anew=self._is_now,
        )


def _by_name(
    numbers: Array, layout: Sequence[tuple[dict[Any, slice], torch.dtype]], order: Sequence[Any]
) -> Mapping[Any, Array]:
    """Arrays in the order of their names, from those of each dtype one after the other."""
    arrays: dict[Any, Array] = {}
    at = 0
    for slices, dtype in layout:
        length = sum(place.stop - place.start for place in slices.values())
        own = numbers[at : at + length].astype(torch.empty(0, dtype=dtype).numpy().dtype)
        if len(layout) == 1:
            return JoinedArrays(own, slices)
        arrays |= JoinedArrays(own, slices)
        at += length
    return {name: arrays[name] for name in order}
