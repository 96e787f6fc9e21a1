"""Rows of a table that differ in their indices alone, as one row.

``layers.0.fc.weight`` to ``layers.41.fc.weight`` become ``layers.{0..41}.fc.weight``. An index is a
whole part of a dotted name or of a bracket, never the digit of ``conv1``. Two indices of a row that
move together, as those of a layer and the next, grow in step, and have the same number of values,
in order; others stand for every combination, and a set of rows that is neither stays apart.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence

Row = tuple[str, ...]

# A word with a letter that is no number, with brackets that may hold blanks: a name.
_NAME = re.compile(r"(?:[\w.]|\[[^\]]*\])*[A-Za-z_](?:[\w.]|\[[^\]]*\])*")
_NUMBER = re.compile(r"[\d.]+e?$")
_INDEX = re.compile(r"(?<!\w)\d+(?!\w)")
_MARK = "\0"
_FEWEST = 3


def together(rows: Iterable[Row], counted: int, words: str) -> list[Row]:
    """The rows with those of one pattern as one, in the order of the first of each.

    Args:
        rows: cells; all rows have the same number.
        counted: the cell that says how many rows stand in one.
        words: how it says that, such as "{count} x ({cell})".
    """
    groups: dict[Row, dict[tuple[int, ...], Row]] = {}
    for row in rows:
        pattern, indices = _without_indices(row)
        groups.setdefault(pattern, {})[indices] = row
    shown: list[Row] = []
    for pattern, members in groups.items():
        for part in _parts(list(members)):
            if len(part) < _FEWEST:
                shown += [members[indices] for indices in part]
            else:
                shown.append(_one(pattern, part, counted, words))
    return shown


def without_indices(text: str) -> str:
    """A text with a mark in place of every index of a name in it."""
    return _without_indices((text,))[0][0]


def _without_indices(row: Row) -> tuple[Row, tuple[int, ...]]:
    indices: list[int] = []

    def marked(name: re.Match[str]) -> str:
        if _NUMBER.match(name[0]):
            return name[0]
        indices.extend(map(int, _INDEX.findall(name[0])))
        return _INDEX.sub(_MARK, name[0])

    return tuple(_NAME.sub(marked, cell) for cell in row), tuple(indices)


def _parts(members: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """The rows of a pattern in sets that ranges can describe."""
    if _is_described(members):
        return [list(members)]
    # Mostly a layer that is not like the others, such as one without experts: by every other index.
    for position in range(len(members[0]) - 1, -1, -1):
        apart: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for indices in members:
            others = (*indices[:position], *indices[position + 1 :])
            apart.setdefault(others, []).append(indices)
        if len(apart) < len(members) / 2 and all(map(_is_described, apart.values())):
            return list(apart.values())
    # Or stages, of which each has its own number of groups: by the index of fewest values.
    kinds = [len(set(column)) for column in zip(*members, strict=True)]
    few = min((kind for kind in kinds if kind > 1), default=len(members))
    if few > len(members) / _FEWEST:
        return [[indices] for indices in members]
    stages: dict[int, list[tuple[int, ...]]] = {}
    for indices in members:
        stages.setdefault(indices[kinds.index(few)], []).append(indices)
    return [part for stage in stages.values() for part in _parts(stage)]


def _is_described(indices: Sequence[tuple[int, ...]]) -> bool:
    """Whether ranges of the indices that move on their own give these rows and no others."""
    sizes = [len(values) for values in _ranges(indices).values()]
    return math.prod(sizes) == len(indices)


def _ranges(indices: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """Position -> values, of positions that do not follow another one."""
    columns = list(zip(*sorted(indices), strict=True))
    ranges: dict[int, list[int]] = {}
    for position, column in enumerate(columns):
        if len(set(column)) > 1 and not any(_follows(column, columns[other]) for other in ranges):
            ranges[position] = sorted(set(column))
    return ranges


def _follows(column: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one grows in step with the other: 2:4, 4:6 with 1, 2 as well as 2, 3 with 1, 2."""
    last = max(range(len(other)), key=other.__getitem__)
    rise, run = column[last] - column[0], other[last] - other[0]
    return rise > 0 and all(
        (a - column[0]) * run == (b - other[0]) * rise for a, b in zip(column, other, strict=True)
    )


def _one(pattern: Row, indices: Sequence[tuple[int, ...]], counted: int, words: str) -> Row:
    columns = iter(zip(*indices, strict=True))
    cells = []
    for cell in pattern:
        first, *others = cell.split(_MARK)
        cells.append(first + "".join(_range(next(columns)) + other for other in others))
    cells[counted] = words.format(count=len(indices), cell=cells[counted])
    return tuple(cells)


def _range(column: Sequence[int]) -> str:
    values = sorted(set(column))
    if len(values) == 1:
        return str(values[0])
    steps = {b - a for a, b in itertools.pairwise(values)}
    if len(values) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{{{values[0]}..{values[-1]}{f' by {step}' if step > 1 else ''}}}"
    if len(values) <= 8:
        return f"{{{','.join(map(str, values))}}}"
    return f"{{{len(values)} of {values[0]}..{values[-1]}}}"
