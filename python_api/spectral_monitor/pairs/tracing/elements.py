"""Where the elements of a weight come from: every element of every parameter has a number.

A parameter's elements are numbered by their place in memory, so a view of it (a transposed one, one
head of it, a slice of a flat buffer) has the right numbers by its strides alone. Tensors that are
computed from parameters, such as casts, scaled or concatenated ones, keep a `Source` that leads
back.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Key = tuple[int, int]


def key_of(t: Tensor) -> Key | None:
    """What names a tensor's memory, with the size of an element; None where it has no place."""
    if t.layout != torch.strided:
        return None
    try:
        return t.untyped_storage()._cdata, t.element_size()
    except (NotImplementedError, RuntimeError):
        return None


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes, strides and offset of a view, in elements."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(t: Tensor) -> Geometry:
        """The geometry of a tensor."""
        return Geometry(tuple(t.size()), tuple(t.stride()), int(t.storage_offset()))

    def positions(self) -> Tensor:
        """The place of every element, of the view's own shape."""
        total = torch.full((), self.offset, dtype=torch.int64)
        for dim, (size, stride) in enumerate(zip(self.size, self.stride, strict=True)):
            shape = [1] * len(self.size)
            shape[dim] = size
            total = total + (torch.arange(size) * stride).view(shape)
        return total.expand(self.size)

    def coordinates(self, positions: Tensor) -> tuple[list[Tensor], Tensor]:
        """Of places the index along each dimension, and which of them are in the view at all."""
        rest = positions - self.offset
        inside = rest >= 0
        indices = [torch.zeros_like(positions) for _ in self.size]
        for dim in sorted(range(len(self.size)), key=lambda d: -self.stride[d]):
            size, stride = self.size[dim], self.stride[dim]
            if size > 1 and stride > 0:
                indices[dim] = torch.div(rest, stride, rounding_mode="floor")
                inside = inside & (indices[dim] < size)
                rest = rest - indices[dim] * stride
        return indices, inside & (rest == 0)

    def place(self, coordinates: Sequence[Tensor]) -> Tensor:
        """The place of the element at these indices."""
        total = torch.full((), self.offset, dtype=torch.int64)
        for index, stride in zip(coordinates, self.stride, strict=True):
            total = total + index * stride
        return total


class Source(Protocol):
    """From places in a piece of memory to the numbers of the elements that are there."""

    def at(self, positions: Tensor) -> Tensor:
        """Numbers from 1; 0 where no parameter is."""


@dataclass(frozen=True, slots=True)
class Own:
    """The memory of a parameter."""

    first: int

    def at(self, positions: Tensor) -> Tensor:
        """Numbers of the elements at these places."""
        return positions + self.first


@dataclass(frozen=True, slots=True)
class Copied:
    """The memory of an elementwise result: at each index there is what the input has there."""

    result: Geometry
    given: Geometry
    source: Source

    def at(self, positions: Tensor) -> Tensor:
        """Numbers of what was copied to these places."""
        coordinates, inside = self.result.coordinates(positions)
        numbers = self.source.at(torch.where(inside, self.given.place(coordinates), 0))
        return torch.where(inside, numbers, 0)


@dataclass(frozen=True, slots=True)
class Explicit:
    """Numbers written out, one for every element of the memory."""

    numbers: Tensor

    def at(self, positions: Tensor) -> Tensor:
        """Numbers at these places."""
        return self.numbers[positions]


@dataclass(frozen=True, slots=True)
class _Region:
    name: str
    key: Key
    geometry: Geometry

    @property
    def numel(self) -> int:
        return math.prod(self.geometry.size)

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(self.geometry.size[::-1], self.geometry.stride[::-1], strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    @property
    def is_matrix(self) -> bool:
        return sum(size > 1 for size in self.geometry.size) >= 2


class Elements:
    """The parameters of a model by their memory.

    Args:
        parameters: qualified name -> parameter; tied ones may come under each of their names.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._keys: list[Key] = []
        self._firsts: list[int] = []
        self._storages: list[torch.UntypedStorage] = []
        self._regions: dict[Key, list[_Region]] = {}
        self.count = 1
        for name, tensor in parameters.items():
            key = key_of(tensor)
            if key is None or tensor.numel() == 0:
                continue
            if key not in self._regions:
                storage = tensor.untyped_storage()
                self._storages.append(storage)
                self._keys.append(key)
                self._firsts.append(self.count)
                self.count += storage.nbytes() // tensor.element_size()
            self._regions.setdefault(key, []).append(_Region(name, key, Geometry.of(tensor)))
        for regions in self._regions.values():
            # A flat buffer may be a parameter beside the matrices that are views of it.
            regions.sort(key=lambda region: not region.is_matrix)

    def sources(self) -> dict[Key, Source]:
        """Memory -> where the elements in it come from."""
        return {key: Own(f) for key, f in zip(self._keys, self._firsts, strict=True)}

    def named(self, numbers: Tensor) -> list[tuple[str, Tensor, Tensor]]:
        """(name, which of the numbers are its own, their row-major indices in the parameter)."""
        at_once = self._in_one(numbers)
        if at_once is not None:
            return [at_once]
        names = []
        pieces = self._pieces(numbers)
        for index in torch.unique(pieces[numbers > 0]).tolist():
            key, first = self._keys[index], self._firsts[index]
            left = (pieces == index) & (numbers > 0)
            for region in self._regions[key]:
                coordinates, inside = region.geometry.coordinates(numbers - first)
                own = left & inside
                if bool(own.any()):
                    flat = torch.zeros_like(numbers)
                    for i, length in zip(coordinates, region.geometry.size, strict=True):
                        flat = flat * length + i
                    names.append((region.name, own, flat[own]))
                    left = left & ~own
        return names

    def _in_one(self, numbers: Tensor) -> tuple[str, Tensor, Tensor] | None:
        """The answer of `named` for one parameter that has its memory to itself, the usual case."""
        if not len(numbers):
            return None
        low, high = (int(x) for x in numbers.aminmax())
        index = bisect.bisect_right(self._firsts, low) - 1
        if index < 0 or high >= [*self._firsts[index + 1 : index + 2], self.count][0]:
            return None
        (region, *others), first = self._regions[self._keys[index]], self._firsts[index]
        if not region.is_contiguous or any(x.geometry != region.geometry for x in others):
            return None
        flat = numbers - (first + region.geometry.offset)
        if low - first < region.geometry.offset or int(flat.max()) >= region.numel:
            return None
        return region.name, torch.ones_like(numbers, dtype=torch.bool), flat

    def is_matrix(self, number: int) -> bool:
        """Whether the parameter that has this element is longer than 1 in two dimensions."""
        index = int(self._pieces(torch.tensor([number])))
        place = torch.tensor([number - self._firsts[index]])
        return any(
            region.is_matrix and bool(region.geometry.coordinates(place)[1])
            for region in self._regions[self._keys[index]]
        )

    def _pieces(self, numbers: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(self._firsts), numbers.contiguous(), right=True) - 1
