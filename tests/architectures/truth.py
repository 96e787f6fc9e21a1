"""Which outputs of which weight meet which inputs of which, stated by hand.

A `Side` is a list of places in a parameter: the i-th output (all the elements that make it) or the
j-th input. A relation is a set of pairs of places, so that it does not matter how a monitor names,
orders or cuts what it compares: heads, gates and groups, each its own matrix or not.

What counts, where a definition leaves a choice:

* Only what reads last counts: at an addition, what was read on the way to the other addend is the
  residual stream and no writer. Several branches, or token and position tables, all write.
* Factors of a product both write (gate and up, squeeze-excitation and what it scales).
* Norms, activations, poolings and depthwise convolutions, whose groups are vectors, let pass.
* Queries and keys meet by their outputs. With grouped queries several heads meet one.
* A router reads and does not write: its output is a number per expert, the same for all channels.
* Low-rank adapters: A reads what the base reads, B writes where the base writes.
* Latent attention: the part of the keys that is rotated comes straight from ``kv_a`` and meets the
  rotated part of the queries; the other part comes from ``kv_b``.
* A channel of a kernel is read by its centre tap (index ``size // 2``).
* A recurrent layer writes through its content gate, and the next reads in the same direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["Entry", "Place", "Side", "Truth", "Weight", "places"]

Place = tuple[str, tuple[int, ...]]
"""A parameter, and the indices that all elements of an output or input share, -1 where they differ:
row 3 of a matrix is (3, -1) and column 5 is (-1, 5), also of a part of it."""

Relation = frozenset[tuple[Place, Place]]


def places(parameter: str, shape: tuple[int, ...], elements: Tensor) -> tuple[Place, ...]:
    """One place per row of ``elements``, (places, elements of each), which holds flat indices."""
    shared = []
    for index in torch.unravel_index(elements, shape):
        low, high = index.aminmax(dim=1)
        shared.append(torch.where(low == high, low, -1))
    return tuple((parameter, tuple(row)) for row in torch.stack(shared, dim=1).tolist())


@dataclass(frozen=True)
class Side:
    """Outputs or inputs of one weight, in order."""

    label: str
    places: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: slice) -> Side:
        return Side(self.label, self.places[index])

    def part(self, label: str, index: slice | Iterable[int]) -> Side:
        """Some of the places, under a name of their own: queries of a fused weight."""
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        return Side(f"{self.label}[{label}]", tuple(self.places[i] for i in chosen))


@dataclass(frozen=True)
class Weight:
    """A weight with its outputs and its inputs."""

    out: Side
    into: Side


@dataclass
class Entry:
    """One pair that a monitor should have: found where any of its ways is covered."""

    first: str
    second: str
    ways: list[set[tuple[Place, Place]]] = field(default_factory=lambda: [set()])


class Truth:
    """The pairs of one model.

    Args:
        model: gives shapes; tied weights are one parameter under their first name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._first: dict[int, str] = {}
        for name, parameter in _all_parameters(model):
            self._names[name] = self._first.setdefault(id(parameter), name)
            self._shapes[name] = tuple(parameter.shape)
        self.entries: dict[tuple[str, str], Entry] = {}
        self.allowed: set[tuple[Place, Place]] = set()
        """Right, but not required."""

    def name_of_tensor(self, parameter: object) -> str:
        """The first name of a live parameter, however it is called by others."""
        return self._first[id(parameter)]

    def name_of(self, parameter: str) -> str:
        """The first name of a parameter that may have several."""
        return self._names[parameter]

    def indices(self, parameter: str) -> Tensor:
        """Every element's index, in the parameter's shape."""
        shape = self._shapes[parameter]
        return torch.arange(torch.Size(shape).numel()).view(shape)

    def places(self, parameter: str, elements: Tensor) -> tuple[Place, ...]:
        """Of the rows of ``elements``, see `places`."""
        return places(self.name_of(parameter), self._shapes[parameter], elements)

    def linear(self, name: str, outputs: int = 0, inputs: int = 1) -> Weight:
        """A 2-D weight; ``outputs`` and ``inputs`` tell its dimensions."""
        return self._weight(name, self.indices(name), outputs, inputs)

    def table(self, name: str) -> Side:
        """What rows of a table write: its last dimension."""
        elements = self.indices(name).flatten(0, -2)
        return self._side(name, elements.T)

    def stack(self, name: str, outputs: int, inputs: int) -> list[Weight]:
        """Weights along the first dimension of a 3-D parameter: experts or heads."""
        return [self._weight(name, entry, outputs - 1, inputs - 1) for entry in self.indices(name)]

    def conv(self, name: str, *, transposed: bool = False) -> Weight:
        """A convolution of one group: outputs are whole kernels, inputs their centre tap."""
        kernel = self.indices(name)
        kernel = kernel.transpose(0, 1) if transposed else kernel
        centre = tuple(size // 2 for size in kernel.shape[2:])
        inputs = kernel[(slice(None), slice(None), *centre)]
        return Weight(self._side(name, kernel.flatten(1)), self._side(name, inputs.T))

    def feeds(self, writers: Sequence[Weight | Side], readers: Sequence[Weight | Side]) -> None:
        """Every output of every writer meets the input of the same index of every reader."""
        for writer in writers:
            out = writer.out if isinstance(writer, Weight) else writer
            for reader in readers:
                self.meet(out, reader.into if isinstance(reader, Weight) else reader)

    def meet(self, first: Side, second: Side) -> None:
        """These places meet, one by one; of a pair that is stated before, too."""
        self._entry(first, second).ways[0].update(_met(first, second))

    def meet_outputs(self, first: Side, second: Side) -> None:
        """Outputs of both meet: as a pair they may come in either order."""
        self.meet(first, second)
        self.allow(second, first)

    def meet_once(self, first: Side, seconds: Sequence[Side]) -> None:
        """An output is read by several inputs, any of which may stand for all."""
        self._entry(first, seconds[0]).ways = [set(_met(first, second)) for second in seconds]

    def allow(self, first: Side, second: Side) -> None:
        """These may be compared and need not be."""
        self.allowed |= _met(first, second)

    def attention(
        self, q: Side, k: Side, v: Side, o: Side, heads: int, kv_heads: int | None = None
    ) -> None:
        """Queries and keys of every head meet, and its values meet its columns of ``o``."""
        kv_heads = kv_heads or heads
        for head in range(heads):
            shared = head // (heads // kv_heads)
            self.meet_outputs(_head(q, head, heads), _head(k, shared, kv_heads))
            self.meet(_head(v, shared, kv_heads), _head(o, head, heads))

    def right(self) -> set[tuple[Place, Place]]:
        """All places that meet."""
        required = (way for entry in self.entries.values() for way in entry.ways)
        return self.allowed.union(*required)

    def _weight(self, name: str, elements: Tensor, outputs: int, inputs: int) -> Weight:
        rows, columns = (elements.movedim(dim, 0).flatten(1) for dim in (outputs, inputs))
        return Weight(self._side(name, rows), self._side(name, columns))

    def _side(self, name: str, elements: Tensor) -> Side:
        return Side(name, self.places(name, elements))

    def _entry(self, first: Side, second: Side) -> Entry:
        key = (first.label, second.label)
        return self.entries.setdefault(key, Entry(*key))


def _all_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Under all their names: a wrapper's ``named_parameters`` may hide some of them."""
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{leaf}" if path else leaf, parameter
    yield from model.named_parameters(remove_duplicate=False)


def _head(side: Side, index: int, count: int) -> Side:
    size, rest = divmod(len(side), count)
    assert rest == 0, f"{side.label}: {len(side)} places in {count} heads"
    return side[index * size : (index + 1) * size]


def _met(first: Side, second: Side) -> Relation:
    assert len(first) == len(second), (first.label, len(first), second.label, len(second))
    return frozenset(zip(first.places, second.places, strict=True))
