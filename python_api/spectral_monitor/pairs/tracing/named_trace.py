"""From what met in a pass to edges between named parameters.

Numbers of elements mean places in memory; here they become names. Experts that no input reached
have the edges of those beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from spectral_monitor.pairs.tracing.elements import Elements
from spectral_monitor.pairs.tracing.ledger import Ledger, Met
from spectral_monitor.pairs.tracing.map import Edge, Indices, Side, Trace
from torch import Tensor


def named_trace(ledger: Ledger, parameters: Mapping[str, Tensor]) -> Trace:
    """The trace of a finished pass."""
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    namer = _Namer(ledger.elements)
    edges = [
        edge
        for i, met in enumerate(ledger.met)
        for edge in namer.edges(met, is_scores=i in ledger.attention)
    ]
    reached = _reached(ledger, shapes)
    aliases = _aliases(parameters)
    inferred = _with_siblings(edges, shapes, reached, aliases)
    touched = torch.tensor(sorted(ledger.touched), dtype=torch.int64)
    seen = {name for name, *_ in ledger.elements.named(touched)}
    traced = {
        *reached,
        *seen,
        *(side.parameter for edge in inferred for side in (edge.first, edge.second)),
    }
    tied = {other for name in traced for other in aliases.get(name, ())}
    unreached = tuple(
        name
        for name, shape in shapes.items()
        if name not in traced and name not in tied and _is_matrix(shape)
    )
    mixed = tuple(
        (namer.name(writer), operation, namer.name(reader))
        for writer, operation, reader in ledger.mixed
    )
    every = (*edges, *inferred)
    return Trace(every, shapes, aliases, unreached, dict(ledger.ended), tuple(dict.fromkeys(mixed)))


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return sum(size > 1 for size in shape) >= 2


class _Namer:
    """Turns what met into edges."""

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        # By the tensor itself: all experts of a layer share them.
        self._across: dict[tuple[int, str], Indices | None] = {}

    def edges(self, met: Met, *, is_scores: bool = False) -> Iterator[Edge]:
        """The edges that what met is: one for each pair of parameters in it."""
        kind = met.kind if met.kind != "meet" else "scores" if is_scores else "multiplied"
        seconds = self._elements.named(met.second)
        for first, own, mine in self._elements.named(met.first):
            for second, theirs, others in seconds:
                both = own & theirs
                if bool(both.any()):
                    yield Edge(
                        kind,
                        Side(first, mine[both[own]].numpy(), self._beside(met.beside, first)),
                        Side(second, others[both[theirs]].numpy(),
                             self._beside(met.others, second)),
                        met.head,
                    )  # fmt: skip

    def name(self, number: int) -> str:
        """The parameter of an element; nothing of 0."""
        names = self._elements.named(torch.tensor([number])) if number else []
        return names[0][0] if names else ""

    def _beside(self, numbers: Tensor | None, name: str) -> Indices | None:
        if numbers is None:
            return None
        key = (id(numbers), name)
        if key not in self._across:
            indices = [flat for other, _, flat in self._elements.named(numbers) if other == name]
            self._across[key] = indices[0].numpy() if indices else None
        return self._across[key]


def _reached(ledger: Ledger, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, set[int]]:
    """Parameter -> which entries of a stack took part; of others 0."""
    entries_of: dict[str, set[int]] = {}
    for numbers in ledger.used:
        for name, _, flat in ledger.elements.named(numbers):
            shape = shapes[name]
            entries = flat // (shape[1] * shape[2]) if len(shape) == 3 else flat[:1] * 0
            entries_of.setdefault(name, set()).update(torch.unique(entries).tolist())
    return entries_of


def _aliases(parameters: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """First name -> other names of the same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    return {first: tuple(others) for first, *others in names.values() if others}


Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Slot:
    """Which expert of which list a side belongs to."""

    group: str
    index: int


def _with_siblings(
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
        edges = self._edges.get(group, [])
        return [edge for edge, first, second in edges if entry in first | second]

    def is_parallel(self, group: str) -> bool:
        """Whether no entry of a list feeds another, as layers do and experts do not."""
        edges = self._edges.get(group, [])
        if any(first and second and first != second for _, first, second in edges):
            return False
        # One entry alone may be the only layer that ran.
        seen = {entry for _, first, second in edges for entry in first | second}
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
        path: members
        for path, members in groups.items()
        if path.startswith("[") or _alike(forms[path, i] for i in members[0])
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
    """The side of another expert with the same role."""
    if _Slot(group, old) not in _slot(side, shapes):
        return side
    if group.startswith("["):
        shape = shapes[side.parameter]
        shift = (new - old) * shape[1] * shape[2]
        across = None if side.across is None else side.across + shift
        return replace(side, elements=side.elements + shift, across=across)
    rest = side.parameter.removeprefix(f"{group}." if group else "").partition(".")[2]
    return replace(side, parameter=f"{group}.{new}.{rest}" if group else f"{new}.{rest}")
