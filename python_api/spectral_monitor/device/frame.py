"""A frame from the numbers that a step left on its way from the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from spectral_monitor.device.results import Asked, Layout
from spectral_monitor.device.runner import Reading
from spectral_monitor.step.clusters import shown
from spectral_monitor.step.frame import MatrixRow
from spectral_monitor.step.packed_rows import PackedRows, RowPlan
from spectral_monitor.step.rows import leading_rows, split
from spectral_monitor.step.views import Array, ArrayViews, consecutive

from spectral_kernels.tracking.leading.state import WORK as LEADING_WORK
from spectral_kernels.tracking.state import NOT_FINITE, SOLVED, WORK

__all__ = ["FrameMaker", "LateNumbers"]


class FrameMaker:
    """Turns blocks of one program into fields of frames.

    Args:
        asked, layout: those of the program.
        k: how many vectors of each matrix take part.
    """

    def __init__(self, asked: Asked, layout: Layout, k: int) -> None:
        self._asked, self._layout = asked, layout
        names = [matrix.name for matrix in asked.matrices]
        self._spectra = consecutive(names, layout.lengths)
        counts = [min(k, length) for length in layout.lengths]
        self._first, self._shown = shown(self._spectra, counts)
        self._dtype = torch.empty(0, dtype=layout.dtype).numpy().dtype
        self._names: list[Sequence[str]] = [WORK] * len(names)
        for i in asked.partial:
            self._names[i] = LEADING_WORK
        self._solved = [names.index(WORK[SOLVED]) for names in self._names]
        complete = [asked.matrices[i] for i in asked.complete]
        self._plan = RowPlan.of(complete, "tracked", [layout.lengths[i] for i in asked.complete])

    def lost(self, numbers: Array) -> list[int]:
        """The matrices, and parts after them, whose bounds exceed the tolerance."""
        lost: list[int] = np.flatnonzero(numbers[self._layout.places["lost"]]).tolist()
        return lost

    def scalars(self, numbers: Array) -> list[float]:
        """The caller's numbers, and zeros in the room that is left."""
        values: list[float] = numbers[self._layout.places["scalars"]].tolist()
        return values

    def fields(self, numbers: Array, anew: Sequence[int]) -> dict[str, Any]:
        """Fields of the frame; ``anew``: matrices that were solved anew before the step."""
        part = {name: numbers[place] for name, place in self._layout.places.items()}
        codes = part["codes"].astype(np.int64)
        # Where the vectors come from a solution they need no work.
        for i in anew:
            # Parts have no codes.
            if i < len(codes) and codes[i] >= 0:
                codes[i] = self._solved[i]
        told = zip(self._names, codes.tolist(), strict=True)
        work = [NOT_FINITE if code < 0 else names[code] for names, code in told]
        single, whole = part["agreement"].astype(self._dtype).reshape(2, -1)
        agreement = self._layout.agreement
        return {
            "matrices": self._rows(part, work),
            "alignment": ArrayViews(part["alignment"].astype(self._dtype), self._layout.alignment),
            "agreement": ArrayViews(single, agreement),
            "subspace_agreement": ArrayViews(whole, agreement),
            "identifiable": ArrayViews(part["alone"][self._first] != 0, self._shown),
            "identities": ArrayViews(part["identities"].astype(np.int64), self._spectra),
        }

    def _rows(self, part: Mapping[str, Array], work: list[str]) -> Mapping[str, MatrixRow]:
        values = part["values"].astype(self._dtype)
        if not self._asked.partial:
            return self._complete(values, part["bounds"], part["tables"], work)
        lengths = self._layout.lengths
        spectra, bounds = split(values, lengths), split(part["bounds"], lengths)
        rows = self._leading(spectra, bounds, part["norms"], work)
        own = self._asked.complete
        if own:
            rows |= self._complete(
                np.concatenate([spectra[i] for i in own]),
                np.concatenate([bounds[i] for i in own]),
                part["tables"],
                [work[i] for i in own],
            )
        return {matrix.name: rows[matrix.name] for matrix in self._asked.matrices}

    def _complete(
        self, values: Array, bounds: Array, tables: Array, work: list[str]
    ) -> Mapping[str, MatrixRow]:
        count = len(self._asked.complete)
        finite = [entry != NOT_FINITE for entry in work]
        return PackedRows(self._plan, values, bounds, tables.reshape(2, count, -1), finite, work)

    def _leading(
        self, spectra: Sequence[Array], bounds: Sequence[Array], norms: Array, work: Sequence[str]
    ) -> dict[str, MatrixRow]:
        own = self._asked.partial
        return leading_rows(
            [self._asked.matrices[i] for i in own],
            "tracked",
            [torch.from_numpy(spectra[i]) for i in own],
            torch.from_numpy(norms),
            finite=[work[i] != NOT_FINITE for i in own],
            work=[work[i] for i in own],
            bounds=[torch.from_numpy(bounds[i]) for i in own],
        )


class LateNumbers:
    """What is still to come of a frame, see `spectral_monitor.step.frame.Late`.

    Args:
        reading, maker: the numbers, and what they mean.
        anew: matrices that were solved anew before the step.
        scalars: the caller's numbers by name, None for those that come with the reading.
    """

    def __init__(
        self,
        reading: Reading,
        maker: FrameMaker,
        anew: Sequence[int],
        scalars: Mapping[str, float | None],
    ) -> None:
        self._reading, self._maker, self._anew, self._scalars = reading, maker, anew, scalars
        self._host_seconds, self._elapsed_seconds = 0.0, math.nan

    @property
    def arrived(self) -> bool:
        """Whether looking at the frame waits for nothing."""
        return self._reading.arrived

    def took(self, host_seconds: float, elapsed_seconds: float) -> None:
        """What the step cost the host, and how long ago the last frame was."""
        self._host_seconds, self._elapsed_seconds = host_seconds, elapsed_seconds

    def fields(self) -> dict[str, Any]:
        """Field -> value, see `spectral_monitor.step.frame.Late`."""
        numbers = self._reading.numbers()
        late = iter(self._maker.scalars(numbers))
        # Host and device work side by side: what holds up training is the slower of the two.
        seconds = max(self._host_seconds, self._reading.seconds())
        return {
            "scalars": {n: next(late) if x is None else x for n, x in self._scalars.items()},
            "overhead": seconds / self._elapsed_seconds,
            **self._maker.fields(numbers, self._anew),
        }
