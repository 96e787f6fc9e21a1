"""Ports for rows and columns that a trace found."""

from __future__ import annotations

import numpy as np
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.submatrices import Range, part_of
from spectral_monitor.pairs.pairs import Port, entry_port, exit_port
from spectral_monitor.pairs.tracing.map import Indices
from spectral_monitor.pairs.tracing.places import Placed

__all__ = ["Ports", "ranges_of"]

_Cut = tuple[str, str, tuple[Range, ...]]


class Ports:
    """Makes ports; the same rows or columns of a matrix are one part with one name."""

    def __init__(self) -> None:
        self._parts: dict[_Cut, Matrix] = {}
        self._names: dict[str, _Cut] = {}

    def port(self, placed: Placed, label: str = "", *, taps: bool = False) -> Port:
        """The port of these rows or columns, in this order.

        All of them are the matrix's own; some are a part with an SVD of its own, but the gate of a
        recurrent layer, and with ``taps`` columns at equal distances, which are cut out of the
        singular vectors, as the centre tap of a kernel is.
        """
        matrix, end, indices = placed.matrix, placed.end, placed.indices
        if end == "U" and matrix.source.output_block is not None:
            gate = exit_port(matrix)
            if np.array_equal(indices, np.arange(gate.start, gate.stop)):
                return gate
        length = matrix.shape[end == "V"]
        if np.array_equal(indices, np.arange(length)):
            return Port(matrix, matrix.name, end, 0, length, channels=length)
        size, centre = matrix.source.taps, matrix.source.centre
        if end == "V" and size > 1 and bool((indices % size == centre).all()):
            return self._kernel(placed, label)
        step = _step(indices)
        if taps and step > 1:
            start, stop = int(indices[0]), int(indices[-1]) + 1
            name = f"{matrix.name}[inputs {start}:{stop}:{step}]"
            return Port(matrix, name, end, start, stop, step, channels=len(indices))
        part = self.part(matrix, end, ranges_of(indices), label)
        return Port(part, part.name, end, 0, len(indices), channels=len(indices))

    def _kernel(self, placed: Placed, label: str) -> Port:
        """Channels of a convolution, at the centre tap of each."""
        matrix, size, centre = placed.matrix, placed.matrix.source.taps, placed.matrix.source.centre
        channels = placed.indices // size
        if len(channels) * size == matrix.shape[1] and _step(channels) == 1:
            return entry_port(matrix)
        cut = [(start * size, stop * size) for start, stop in ranges_of(channels)]
        part = self.part(matrix, "V", cut, label or _named("inputs", ranges_of(channels)))
        return Port(part, part.name, "V", centre, part.shape[1], size, channels=len(channels))

    def part(self, matrix: Matrix, end: str, ranges: list[Range], label: str = "") -> Matrix:
        """Rows or columns as a matrix; called by their numbers where the label is another's."""
        if ranges == [(0, matrix.shape[end == "V"])]:
            return matrix
        cut = (matrix.name, end, tuple(ranges))
        if cut not in self._parts:
            told = _named("outputs" if end == "U" else "inputs", ranges)
            name = f"{matrix.name}[{label or told}]"
            if self._names.setdefault(name, cut) != cut:
                label = f"{label}, {told}"
            rows, columns = (ranges, None) if end == "U" else (None, ranges)
            self._parts[cut] = part_of(matrix, label or told, rows=rows, columns=columns)
        return self._parts[cut]


def ranges_of(indices: Indices) -> list[Range]:
    """Ranges that make the indices, in their order."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    parts = np.split(indices, breaks)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts]


def _step(indices: Indices) -> int:
    """The distance between neighbours where all are the same and ascend; else 0."""
    steps = np.diff(indices)
    if not len(steps):
        return 1
    return int(steps[0]) if steps[0] > 0 and bool((steps == steps[0]).all()) else 0


def _named(what: str, ranges: list[Range]) -> str:
    shown = [f"{start}:{stop}" for start, stop in ranges[:3]]
    more = f" and {len(ranges) - 3} more" if len(ranges) > 3 else ""
    return f"{what} {', '.join(shown)}{more}"
