"""Experts that no input reached: their edges are those of the experts beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from spectral_monitor.pairs.tracing.map import Edge, Side

__all__ = ["with_siblings"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Slot:
    """Which expert of which list a side belongs to."""

    group: str
    index: int


def with_siblings(
    edges: Sequence[Edge],
    shapes: Shapes,
    reached: Mapping[str, set[int]],
    aliases: Mapping[str, tuple[str, ...]],
) -> list[Edge]:
    """Edges of experts without inputs, by those of one that had some.

    Experts are entries of a list of modules or of one stacked parameter, of the same shapes, of
    which none feeds another.
    """
    index = _Index(shapes)
    for edge in edges:
        index.add(edge)
    made: list[Edge] = []
    for group, (indices, had) in _groups(shapes, reached).items():
        missing = sorted(indices - had)
        if not missing or not had or not index.is_parallel(group):
            continue
        template = min(had)
        own = index.of(group, template)
        for new in missing:
            for edge in own:
                moved = replace(
                    edge,
                    first=_moved(edge.first, group, template, new, shapes),
                    second=_moved(edge.second, group, template, new, shapes),
                    inferred=True,
                )
                made.append(moved)
                index.add(moved)
    return made


class _Index:
    """Edges by the lists that their sides belong to."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._edges: dict[str, list[tuple[Edge, set[int], set[int]]]] = {}

    def add(self, edge: Edge) -> None:
        """Enter an edge under the lists of both sides."""
        sides = [_slot(side, self._shapes) for side in (edge.first, edge.second)]
        for group in {slot.group for slots in sides for slot in slots}:
            first, second = ({s.index for s in slots if s.group == group} for slots in sides)
            self._edges.setdefault(group, []).append((edge, first, second))

    def of(self, group: str, entry: int) -> list[Edge]:
        """The edges of one entry of a list."""
        found = self._edges.get(group, [])
        return [edge for edge, first, second in found if entry in first | second]

    def is_parallel(self, group: str) -> bool:
        """Whether no entry of a list feeds another, as layers do and experts do not."""
        found = self._edges.get(group, [])
        if any(first and second and first != second for _, first, second in found):
            return False
        # One entry alone may be the only layer that ran.
        seen = {entry for _, first, second in found for entry in first | second}
        return len(seen) > 1 or "expert" in group.lower()


def _groups(
    shapes: Shapes, reached: Mapping[str, set[int]]
) -> dict[str, tuple[set[int], set[int]]]:
    """List -> its indices, and those that were reached."""
    groups: dict[str, tuple[set[int], set[int]]] = {}
    forms: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        for path, index, rest in _numbered(name):
            indices, had = groups.setdefault(path, (set(), set()))
            indices.add(index)
            forms.setdefault((path, index), {})[rest] = shape
            if name in reached:
                had.add(index)
        if len(shape) == 3:
            indices, had = groups.setdefault(_stack(name), (set(), set()))
            indices.update(range(shape[0]))
            had.update(reached.get(name, ()))
    return {
        path: found
        for path, found in groups.items()
        if path.startswith("[") or _alike(forms[path, i] for i in found[0])
    }


def _numbered(name: str) -> Iterator[tuple[str, int, str]]:
    """The lists of modules that a parameter is in: path, index and the rest."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdigit():
            yield ".".join(parts[:place]), int(part), ".".join(parts[place + 1 :])


def _stack(name: str) -> str:
    """The group of a stacked parameter: that of all in its module."""
    return f"[{name.rpartition('.')[0]}]"


def _alike(forms: Iterable[dict[str, tuple[int, ...]]]) -> bool:
    first, *others = forms
    return all(other == first for other in others)


def _slot(side: Side, shapes: Shapes) -> list[_Slot]:
    shape = shapes[side.parameter]
    slots = [_Slot(path, index) for path, index, _ in _numbered(side.parameter)]
    if len(shape) == 3:
        entries = np.unique(side.elements // (shape[1] * shape[2]))
        if len(entries) == 1:
            slots.append(_Slot(_stack(side.parameter), int(entries[0])))
    return slots


def _moved(side: Side, group: str, old: int, new: int, shapes: Shapes) -> Side:
    """The same side of another expert."""
    if _Slot(group, old) not in _slot(side, shapes):
        return side
    if group.startswith("["):
        shape = shapes[side.parameter]
        shift = (new - old) * shape[1] * shape[2]
        across = None if side.across is None else side.across + shift
        return replace(side, elements=side.elements + shift, across=across)
    rest = side.parameter.removeprefix(f"{group}." if group else "").partition(".")[2]
    return replace(side, parameter=f"{group}.{new}.{rest}" if group else f"{new}.{rest}")
