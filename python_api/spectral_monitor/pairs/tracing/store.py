"""Labels of every tensor of a forward pass, kept by memory so that all views agree.

Labels lie in arrays with the layout of the memory they belong to. A view's labels are the same
array with the view's sizes and strides, so reshapes, heads, chunks and writes into slices need no
rule. Several arrays, *layers*, are there where several weights wrote one activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from spectral_monitor.pairs.tracing.elements import (
    Copied,
    Elements,
    Explicit,
    Geometry,
    Own,
    Source,
    key_of,
)
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Marks:
    """What part of an attention a tensor is, and what no label says of it any more."""

    scores: frozenset[int] = frozenset()
    """Which products of queries and keys these are."""
    probabilities: bool = False
    """Out of a softmax."""
    factors: frozenset[tuple[int, int]] = frozenset()
    """Uses of weights of which the outputs were multiplied one by one, not summed yet."""
    mixed: frozenset[tuple[int, str]] = frozenset()
    """Uses whose outputs an operation mixed, so that no label is left, and its name."""

    def __or__(self, other: Marks) -> Marks:
        return Marks(
            self.scores | other.scores,
            self.probabilities or other.probabilities,
            self.factors | other.factors,
            self.mixed | other.mixed,
        )


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """Labels and elements of a piece of memory."""

    storage: torch.UntypedStorage
    """Held, so that its address is not given to another tensor during the pass."""
    layers: tuple[Tensor, ...] = ()
    past: int = 0
    """Bit i: use i of a weight had a part in these values."""
    is_data: bool = False
    """Computed from the inputs or by a product, rather than a weight or a constant."""
    marks: Marks = Marks()
    source: Source | None = None
    inner: Source | None = None
    """Of a product of two weights what its inputs are; ``source`` says what its outputs are."""
    is_read: bool = False
    """A weight that a layer was given as its input."""


class Store:
    """The records of all memory that the pass has seen."""

    def __init__(self, elements: Elements, parameters: Sequence[Tensor]) -> None:
        self._kept: dict[tuple[int, int], MemoryRecord] = {}
        sources = elements.sources()
        for tensor in parameters:
            key = key_of(tensor)
            if key in sources:
                self._kept[key] = MemoryRecord(tensor.untyped_storage(), source=sources[key])

    def of(self, t: Tensor) -> MemoryRecord | None:
        """The record of a tensor's memory; None where there is none."""
        key = key_of(t)
        return None if key is None else self._kept.get(key)

    def is_data(self, t: Tensor) -> bool:
        """Whether a tensor depends on the inputs or on a product with a weight."""
        kept = self.of(t)
        return kept is not None and (kept.is_data or kept.is_read)

    def is_weight(self, t: Tensor) -> bool:
        """Whether it is a parameter, or computed from parameters elementwise, and used as one."""
        kept = self.of(t)
        return kept is not None and kept.source is not None and not kept.is_read

    def layers(self, t: Tensor) -> list[Tensor]:
        """Labels of a tensor, each of its shape."""
        kept = self.of(t)
        return [] if kept is None else [_view(array, t) for array in kept.layers]

    def past(self, *tensors: Tensor) -> int:
        """All uses of weights that had a part in these tensors."""
        total = 0
        for t in tensors:
            kept = self.of(t)
            total |= 0 if kept is None else kept.past
        return total

    def marks(self, t: Tensor) -> Marks:
        """What part of an attention a tensor is."""
        kept = self.of(t)
        return Marks() if kept is None else kept.marks

    def numbers(self, t: Tensor) -> Tensor:
        """Numbers of a weight's elements, of its shape; 0 where there are none."""
        kept = self.of(t)
        if kept is None or kept.source is None:
            return torch.zeros(t.shape, dtype=torch.int64)
        return kept.source.at(Geometry.of(t).positions())

    def first_number(self, t: Tensor) -> int:
        """The number of a parameter's first element; 0 of all other tensors."""
        kept = self.of(t)
        if kept is None or not isinstance(kept.source, Own):
            return 0
        return kept.source.first + int(t.storage_offset())

    def line(self, t: Tensor, dim: int) -> Tensor:
        """Numbers along one dimension of a weight, at the first index of all others."""
        for other in range(t.dim()):
            if other != dim % t.dim():
                t = t.narrow(other, 0, 1)
        numbers = self.numbers(t).flatten()
        kept = self.of(t)
        if kept is None or kept.inner is None or bool((numbers != numbers[0]).any()):
            return numbers
        return kept.inner.at(Geometry.of(t).positions()).flatten()

    def is_product(self, t: Tensor) -> bool:
        """Whether a tensor is a product of two weights."""
        kept = self.of(t)
        return kept is not None and kept.inner is not None

    def put_product(self, t: Tensor, outputs: Tensor, inputs: Tensor) -> None:
        """A product of two weights: rows are outputs of one, columns inputs of the other."""
        key = key_of(t)
        if key is not None:
            sources = (Explicit(_array(x, t)) for x in (outputs, inputs))
            self._kept[key] = MemoryRecord(
                t.untyped_storage(), source=next(sources), inner=next(sources)
            )

    def put(
        self,
        t: Tensor,
        layers: Sequence[Tensor] = (),
        past: int = 0,
        *,
        marks: Marks = Marks(),
    ) -> None:
        """An activation in new memory."""
        key = key_of(t)
        if key is not None:
            self._kept[key] = MemoryRecord(
                t.untyped_storage(),
                tuple(_array(x, t) for x in layers if bool(x.any())),
                past,
                True,
                marks,
            )

    def write(
        self,
        t: Tensor,
        layers: Sequence[Tensor],
        past: int,
        marks: Marks = Marks(),
    ) -> None:
        """New values at the places of a view."""
        key = key_of(t)
        if key is None:
            return
        kept = self._kept.get(key) or MemoryRecord(t.untyped_storage())
        self._kept[key] = replace(
            kept,
            layers=_written(kept.layers, layers, t),
            past=kept.past | past,
            is_data=True,
            marks=kept.marks | marks,
            source=None,
        )

    def put_copied(self, t: Tensor, given: Tensor) -> None:
        """A weight's elements in new memory: at each index what ``given`` has there."""
        key, kept = key_of(t), self.of(given)
        if key is not None and kept is not None and kept.source is not None:
            to, of = Geometry.of(t), Geometry.of(given.expand(t.shape))
            inner = None if kept.inner is None else Copied(to, of, kept.inner)
            source = Copied(to, of, kept.source)
            self._kept[key] = MemoryRecord(t.untyped_storage(), source=source, inner=inner)

    def put_beside(self, t: Tensor, layers: Sequence[Tensor]) -> None:
        """A weight that is read as an activation carries labels besides its numbers."""
        key, kept = key_of(t), self.of(t)
        if key is not None and kept is not None:
            arrays = tuple(_array(x, t) for x in layers)
            self._kept[key] = replace(kept, layers=arrays, is_read=True)

    def put_numbers(self, t: Tensor, numbers: Tensor) -> None:
        """A weight's elements in new memory, by their numbers."""
        key = key_of(t)
        if key is not None:
            self._kept[key] = MemoryRecord(t.untyped_storage(), source=Explicit(_array(numbers, t)))

    def mark(self, t: Tensor, use: int) -> None:
        """A weight took part as a table: what comes of it has this use in its past."""
        key = key_of(t)
        if key is not None and key in self._kept:
            self._kept[key] = replace(self._kept[key], past=self._kept[key].past | 1 << use)

    def forget(self, t: Tensor) -> None:
        """Constants are at this place now."""
        key = key_of(t)
        if key is not None:
            self._kept.pop(key, None)

    def put_as(self, t: Tensor, layers: Sequence[Tensor], like: Tensor) -> None:
        """The memory of ``like`` as elements of another size, through the view ``t``."""
        key, kept = key_of(t), self.of(like)
        if key is not None and kept is not None:
            arrays = tuple(_array(x, t) for x in layers)
            self._kept[key] = replace(kept, layers=arrays, source=None)


def _view(array: Tensor, t: Tensor) -> Tensor:
    return array.as_strided(t.size(), t.stride(), t.storage_offset())


def _places(t: Tensor) -> int:
    return t.untyped_storage().nbytes() // t.element_size()


def _array(x: Tensor, t: Tensor) -> Tensor:
    """Labels of a tensor as an array with the layout of its memory."""
    places = _places(t)
    if t.is_contiguous() and t.numel() == places:
        return x.expand(t.shape).contiguous().view(-1)
    array = torch.zeros(places, dtype=torch.int64)
    # By index, as several elements of an expanded tensor are in one place.
    array[Geometry.of(t).positions()] = x.expand(t.shape)
    return array


def _written(arrays: Sequence[Tensor], layers: Sequence[Tensor], t: Tensor) -> tuple[Tensor, ...]:
    """Copies, as arrays may be shared, with the labels of ``layers`` at the places of ``t``."""
    new = []
    for index in range(max(len(arrays), len(layers))):
        array = arrays[index].clone() if index < len(arrays) else torch.zeros(
            _places(t), dtype=torch.int64)  # fmt: skip
        _view(array, t).copy_(layers[index] if index < len(layers) else torch.zeros(1).long())
        if bool(array.any()):
            new.append(array)
    return tuple(new)
