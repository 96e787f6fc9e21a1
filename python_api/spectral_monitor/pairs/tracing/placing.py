"""Where the elements of a parameter are in the matrices that a monitor makes of it, as ports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.submatrices import Range, submatrix
from spectral_monitor.pairs.ports import Port, entry_port, exit_port
from spectral_monitor.pairs.tracing.map import Indices, Side, Trace

from spectral_kernels.entry.results import Decomposed

End = Literal["U", "V"]


@dataclass(frozen=True, eq=False, slots=True)
class Placed:
    """Rows or columns of a matrix, and which entries of an edge they are."""

    matrix: Matrix
    end: End
    indices: Indices
    """Rows of a matrix at its end "U", columns at "V"."""
    of: Indices
    """Positions in the edge."""

    def at(self, order: Indices | slice) -> Placed:
        """Some of the rows or columns, in this order."""
        return replace(self, indices=self.indices[order], of=self.of[order])


@dataclass(frozen=True, eq=False, slots=True)
class _Layout:
    """How a matrix lies in its parameter: by the coordinates of its rows and of its columns."""

    matrix: Matrix
    shape: tuple[int, ...]
    rows: Indices
    """Row-major indices of the elements of the first column, without the dimensions of columns."""
    columns: Indices
    row_dims: tuple[int, ...]
    column_dims: tuple[int, ...]
    constant: Mapping[int, int]

    ends_of: dict[bytes, tuple[np.ndarray, Indices, Indices]]
    """What `ends` found for which elements, of all matrices that lie alike, such as experts."""

    def ends(self, elements: Indices) -> tuple[np.ndarray, Indices, Indices]:
        """Which elements are in the matrix, and the row and the column of each, -1 outside."""
        key = elements.tobytes()
        if key not in self.ends_of:
            self.ends_of[key] = self._ends(elements)
        return self.ends_of[key]

    def _ends(self, elements: Indices) -> tuple[np.ndarray, Indices, Indices]:
        at = np.unravel_index(elements, self.shape)
        inside = np.ones(len(elements), bool)
        for dim, value in self.constant.items():
            inside &= at[dim] == value
        row = _find(self.rows, _flat(at, self.row_dims, self.shape))
        column = _find(self.columns, _flat(at, self.column_dims, self.shape))
        return inside & (row >= 0) & (column >= 0), row, column


class Places:
    """The matrices of a monitor by the parameters of a trace."""

    def __init__(self, traced: Trace, matrices: Iterable[Matrix]) -> None:
        self._traced = traced
        self.unmatched: list[tuple[str, str]] = []
        """Matrices that the trace does not know, with the reason."""
        self.inner: set[str] = set()
        """The middle factors of decomposed matrices."""
        self._by_name: dict[str, _Stack] = {}
        # Parameters that are matrices as they are, by shape.
        plain: dict[tuple[int, ...], _Layout] = {}
        wholes = {m.name for m in matrices if m.whole is None}
        names = {other: first for first, others in traced.aliases.items() for other in others}
        for matrix in matrices:
            if matrix.whole is not None and matrix.whole in wholes:
                continue
            is_known = False
            self.inner.update(name for name in _factors_of(matrix) if name.endswith("Sigma"))
            for name in _names_of(matrix, traced.shapes):
                first_name = names.get(name, name)
                layout = _layout(matrix, first_name, traced.shapes.get(first_name), plain)
                if layout is not None:
                    self._by_name.setdefault(first_name, _Stack(layout.shape)).add(layout)
                    is_known = True
            if not is_known:
                self.unmatched.append((matrix.name, _why_not(matrix, traced)))

    def has(self, parameter: str) -> bool:
        """Whether a matrix of this parameter is watched."""
        return parameter in self._by_name

    def of(self, side: Side, *, writes: bool) -> list[Placed]:
        """The rows or columns that a side of an edge means, matrix by matrix."""
        stack = self._by_name.get(side.parameter)
        if stack is None:
            return []
        placed = []
        here = stack.holding(side.elements)
        across = [] if side.across is None else stack.holding(side.across)
        for layout in here:
            inside, rows, columns = layout.ends(side.elements)
            of = np.flatnonzero(inside)
            if len(of):
                end = _end(rows[of], columns[of], layout.matrix, writes=writes)
                indices = (rows if end == "U" else columns)[of]
                # Those that lie along the other side act together with this one.
                beside = [other for other in across if other not in here]
                placed += [Placed(x.matrix, end, indices, of) for x in (layout, *beside)]
        return placed


class _Stack:
    """The matrices of one parameter."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        # Dimensions in which a matrix has one index -> these indices -> matrices.
        self._layouts: dict[tuple[int, ...], dict[tuple[int, ...], list[_Layout]]] = {}

    def add(self, layout: _Layout) -> None:
        """Take one more matrix; the same one a second time changes nothing."""
        dims = tuple(layout.constant)
        at = self._layouts.setdefault(dims, {}).setdefault(tuple(layout.constant.values()), [])
        if all(other.matrix is not layout.matrix for other in at):
            at.append(layout)

    def holding(self, elements: Indices) -> list[_Layout]:
        """The matrices that may have some of the elements."""
        layouts: list[_Layout] = []
        for dims, by_index in self._layouts.items():
            if not dims:
                layouts += by_index[()]
                continue
            at = np.unravel_index(elements, self._shape)
            indices = np.stack([at[dim] for dim in dims], 1)
            # Mostly all are in one matrix, and finding the different ones takes longer.
            apart = (
                indices[:1] if bool((indices == indices[0]).all()) else np.unique(indices, axis=0)
            )
            for values in apart.tolist():
                layouts += by_index.get(tuple(values), [])
        return layouts


def _end(rows: Indices, columns: Indices, matrix: Matrix, *, writes: bool) -> End:
    if len(rows) > 1:
        varied = (rows != rows[0]).any(), (columns != columns[0]).any()
        if varied[0] != varied[1]:
            return "U" if varied[0] else "V"
    return "U" if writes and not matrix.source.is_table else "V"


def _names_of(matrix: Matrix, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of parameters that may hold a matrix: its own, or its factors."""
    names = [matrix.parameter, *matrix.aliases]
    return names if any(name in shapes for name in names) else _factors_of(matrix)


def _factors_of(matrix: Matrix) -> list[str]:
    """Names of the factors: of ``attn.in_proj_weight`` they are ``attn.in_proj.U`` and so on."""
    if not matrix.is_decomposed:
        return []
    paths = [
        name.removesuffix("_weight") if name.endswith("_weight") else name.rpartition(".")[0]
        for name in (matrix.parameter, *matrix.aliases)
    ]
    return [
        f"{path}.{factor}" if path else factor for path in paths for factor in Decomposed._fields
    ]


def _why_not(matrix: Matrix, traced: Trace) -> str:
    names = _names_of(matrix, traced.shapes)
    shapes = [traced.shapes[name] for name in names if name in traced.shapes]
    if not shapes:
        return "the trace has no parameter of this name"
    return f"the trace has shape {shapes[0]}, which has no such matrix of shape {matrix.shape}"


def _layout(
    matrix: Matrix,
    name: str,
    shape: tuple[int, ...] | None,
    plain: dict[tuple[int, ...], _Layout],
) -> _Layout | None:
    """How a matrix lies in a parameter; ``plain`` has the layouts of whole parameters so far."""
    if shape is None or math.prod(shape) == 0:
        return None
    m, n = matrix.shape
    view = matrix.source.view
    is_plain = view is None and not matrix.is_decomposed
    if is_plain and shape in plain and (m, n) == shape:
        return replace(plain[shape], matrix=matrix)
    if matrix.is_decomposed:
        if name.endswith("Sigma"):
            return None
        # Rows of U are those of the product, columns of Vh its columns.
        lead = () if matrix.entry is None else (matrix.entry,)
        view = lambda t: t[lead] if lead else t  # noqa: E731
        m, n = (m, shape[-1]) if name.endswith("U") else (shape[-2], n)
    coordinates = []
    for dim, size in enumerate(shape):
        line = torch.arange(size).view([-1 if d == dim else 1 for d in range(len(shape))])
        whole = line.expand(shape)
        try:
            shaped = whole if view is None else view(whole)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return None
        if tuple(shaped.shape) != (m, n):
            return None
        coordinates.append((shaped[:, 0].numpy(), shaped[0].numpy()))
    row_dims = tuple(d for d, (r, _) in enumerate(coordinates) if (r != r[0]).any())
    column_dims = tuple(d for d, (_, c) in enumerate(coordinates) if (c != c[0]).any())
    constant = {d: int(r[0]) for d, (r, _) in enumerate(coordinates)
                if d not in row_dims and d not in column_dims}  # fmt: skip
    layout = _Layout(
        matrix,
        shape,
        _flat([r for r, _ in coordinates], row_dims, shape),
        _flat([c for _, c in coordinates], column_dims, shape),
        row_dims,
        column_dims,
        constant,
        {},
    )
    if is_plain:
        plain[shape] = layout
    return layout


def _flat(at: Sequence[Indices], dims: Sequence[int], shape: Sequence[int]) -> Indices:
    total = np.zeros(len(at[0]) if at else 1, np.int64)
    for dim in dims:
        total = total * shape[dim] + at[dim]
    return total


def _find(table: Indices, values: Indices) -> Indices:
    """The place of each value in a table; -1 where it has none."""
    order = np.argsort(table, kind="stable")
    place = np.minimum(np.searchsorted(table[order], values), len(table) - 1)
    return np.where(table[order][place] == values, order[place], -1)


_Cut = tuple[str, str, tuple[Range, ...]]


class PortMaker:
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
            numbered = _named("outputs" if end == "U" else "inputs", ranges)
            name = f"{matrix.name}[{label or numbered}]"
            if self._names.setdefault(name, cut) != cut:
                label = f"{label}, {numbered}"
            rows, columns = (ranges, None) if end == "U" else (None, ranges)
            self._parts[cut] = submatrix(matrix, label or numbered, rows=rows, columns=columns)
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
