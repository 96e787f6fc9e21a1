"""From numbers of elements, which mean places in memory, to names of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from spectral_monitor.pairs.tracing.elements import Elements
from spectral_monitor.pairs.tracing.ledger import Ledger, Met
from spectral_monitor.pairs.tracing.map import Edge, Indices, Side, Trace
from spectral_monitor.pairs.tracing.siblings import with_siblings
from torch import Tensor

__all__ = ["named_trace"]


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
    inferred = with_siblings(edges, shapes, reached, aliases)
    touched = torch.tensor(sorted(ledger.touched), dtype=torch.int64)
    seen = {name for name, *_ in ledger.elements.named(touched)}
    known = {
        *reached,
        *seen,
        *(side.parameter for edge in inferred for side in (edge.first, edge.second)),
    }
    tied = {other for name in known for other in aliases.get(name, ())}
    unreached = tuple(
        name
        for name, shape in shapes.items()
        if name not in known and name not in tied and _is_matrix(shape)
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
        found = self._elements.named(torch.tensor([number])) if number else []
        return found[0][0] if found else ""

    def _beside(self, numbers: Tensor | None, name: str) -> Indices | None:
        if numbers is None:
            return None
        key = (id(numbers), name)
        if key not in self._across:
            found = [flat for other, _, flat in self._elements.named(numbers) if other == name]
            self._across[key] = found[0].numpy() if found else None
        return self._across[key]


def _reached(ledger: Ledger, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, set[int]]:
    """Parameter -> which entries of a stack took part; of others 0."""
    found: dict[str, set[int]] = {}
    for numbers in ledger.used:
        for name, _, flat in ledger.elements.named(numbers):
            shape = shapes[name]
            entries = flat // (shape[1] * shape[2]) if len(shape) == 3 else flat[:1] * 0
            found.setdefault(name, set()).update(torch.unique(entries).tolist())
    return found


def _aliases(parameters: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """First name -> other names of the same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    return {first: tuple(others) for first, *others in names.values() if others}
