"""One operation of a forward pass, and what the rules of all operations share.

A `Call` has the arguments of an operation by the names of its schema; the `Context` has the ledger
and the labels, and gives a result its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from spectral_monitor.pairs.tracing.elements import key_of
from spectral_monitor.pairs.tracing.ledger import Ledger, Written, joined, varies
from spectral_monitor.pairs.tracing.store import Marks, Store
from torch import Tensor


def words(text: str) -> tuple[str, ...]:
    """The words of a text: names of operations."""
    return tuple(text.split())


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from tensors_of(entry)


class NotFollowedError(Exception):
    """No rule knows what an operation did: labels end there."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operation that ran: its function, its arguments and what it gave."""

    function: Any
    """An overload such as ``torch.ops.aten.add.Tensor``."""
    arguments: dict[str, Any]
    result: Any

    @staticmethod
    def of(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Call:
        """The call with every argument, given or by default, under its name."""
        arguments = {}
        for index, declared in enumerate(function._schema.arguments):
            if index < len(args):
                arguments[declared.name] = args[index]
            elif declared.name in kwargs:
                arguments[declared.name] = kwargs[declared.name]
            elif declared.has_default_value():
                arguments[declared.name] = declared.default_value
        return Call(function, arguments, result)

    @property
    def name(self) -> str:
        """Name without its overload, ``aten::add_``."""
        return str(self.function._schema.name)

    @property
    def base_name(self) -> str:
        """Name alone, ``add_``."""
        return self.name.rpartition("::")[2]

    @property
    def is_pointwise(self) -> bool:
        """Whether PyTorch says that each output depends on the inputs at its own index alone.

        Of some operations in place it says so only where they are not.
        """
        space, _, name = self.name.partition("::")
        plain = getattr(getattr(torch.ops, space), name.rstrip("_") or name, self.function)
        both = [self.function, *(getattr(plain, o) for o in getattr(plain, "overloads", list)())]
        return any(torch.Tag.pointwise in function.tags for function in both)

    @property
    def writes(self) -> Tensor | None:
        """The argument that an in-place operation changes."""
        for declared in self.function._schema.arguments:
            if declared.alias_info is not None and declared.alias_info.is_write:
                value = self.arguments.get(declared.name)
                if isinstance(value, Tensor):
                    return value
        return None

    def tensor(self, name: str) -> Tensor | None:
        """An argument if it is a tensor."""
        value = self.arguments.get(name)
        return value if isinstance(value, Tensor) else None

    def tensors(self, *names: str) -> tuple[Tensor, ...]:
        """Arguments that have to be tensors.

        Raises:
            NotFollowedError: one is none.
        """
        values = [self.arguments.get(name) for name in names]
        tensors = tuple(value for value in values if isinstance(value, Tensor))
        if len(tensors) < len(values):
            raise NotFollowedError
        return tensors

    @property
    def out(self) -> Tensor:
        """The tensor that has the result: the one written to, or the first that came out.

        Raises:
            NotFollowedError: there is none.
        """
        written = self.writes
        out = self.output() if written is None else written
        if out is None:
            raise NotFollowedError
        return out

    def inputs(self) -> list[Tensor]:
        """All tensors among the arguments, but for one that is only written to."""
        tensors = []
        for name, value in self.arguments.items():
            if name != "out":
                tensors += list(tensors_of(value))
        return tensors

    def output(self) -> Tensor | None:
        """The first tensor that came out."""
        return next(tensors_of(self.result), None)

    def is_view(self) -> bool:
        """Whether the output is the memory of an input, unwritten."""
        out = self.output()
        if out is None or self.writes is not None:
            return False
        key = key_of(out)
        return key is not None and any(key_of(t) == key for t in self.inputs())


@dataclass(frozen=True, slots=True)
class Context:
    """The state of one trace."""

    ledger: Ledger
    store: Store

    def settle(
        self,
        call: Call,
        layers: Sequence[Tensor],
        past: int,
        *,
        marks: Marks | None = None,
    ) -> None:
        """Give the result of an operation, in new memory or in place, these labels.

        ``marks`` are those of the inputs unless given.
        """
        marks = replace(self.marks(call), factors=frozenset()) if marks is None else marks
        if marks.mixed:
            marks = replace(marks, mixed=self._left(marks.mixed, layers))
        written, out = call.writes, call.output()
        if written is not None:
            self.store.write(written, layers, past, marks)
        elif out is not None:
            self.store.put(out, layers, past, marks=marks)

    def past(self, call: Call) -> int:
        """All uses of weights that had a part in the arguments."""
        return self.store.past(*call.inputs())

    def marks(self, call: Call) -> Marks:
        """The marks of all arguments."""
        marks = Marks()
        for t in call.inputs():
            marks |= self.store.marks(t)
        return marks

    def written(self, t: Tensor, shape: torch.Size, channel: int | None = None) -> Written:
        """The writers of an operand, broadcast; of a table that is added, its columns.

        ``channel`` is the dimension, counted from the end, that runs over the outputs of the table
        if it is not the last.
        """
        if self.store.is_weight(t):
            layers = [x.expand(shape) for x in self.table(t, -1 if channel is None else channel)]
            return Written(layers)
        layers = [layer.expand(shape) for layer in self.store.layers(t)]
        return Written(layers, _positions(layers))

    def table(self, t: Tensor, channel: int = -1) -> list[Tensor]:
        """A weight as what writes its columns into an activation; none of vectors (biases)."""
        if not t.dim() or t.dim() < -channel or not t.numel():
            return []
        line = t
        for dim in range(t.dim()):
            if dim != t.dim() + channel:
                line = line.narrow(dim, 0, 1)
        numbers = self.store.numbers(line)
        first = int(numbers.flatten()[0])
        if not first or not self.ledger.elements.is_matrix(first):
            return []
        use = self.ledger.use(0, numbers)
        self.store.mark(t, use)
        return [self.ledger.label(use, numbers).expand(t.shape)]

    def join(self, operands: Sequence[Tensor], shape: torch.Size, *, is_sum: bool) -> Written:
        """The writers of an elementwise result."""
        data = [t for t in operands if not self.store.is_weight(t)]
        parts = [self.written(t, shape) for t in data]
        # A weight that only scales is no writer; one that is added is, but to scores.
        if is_sum and not any(self.store.marks(t).scores for t in data):
            channel = _channel([layer for part in parts for layer in part.layers])
            parts += [self.written(t, shape, channel) for t in operands if self.store.is_weight(t)]
        total = Written([])
        for part in parts:
            total = joined(self.ledger, total, part, is_sum=is_sum)
        return total

    def reshaped(self, t: Tensor, shape: Sequence[int]) -> Tensor:
        """A view, or a copy that is known as well as what it was copied from."""
        new = t.reshape(shape)
        if key_of(new) != key_of(t):
            if self.store.is_weight(t):
                self.store.put_numbers(new, self.store.numbers(t).reshape(shape))
            else:
                self.store.put(
                    new,
                    [x.reshape(shape) for x in self.store.layers(t)],
                    self.store.past(t),
                    marks=self.store.marks(t),
                )
        return new

    def mixes(self, call: Call, layers: Sequence[Tensor]) -> Marks:
        """Which writers of the arguments have no label in a result with these."""
        uses = {
            use
            for t in call.inputs()
            for layer in self.store.layers(t)
            for use in self.ledger.uses(layer)
        }
        lost = self.ledger.not_among(uses, layers)
        return Marks(mixed=frozenset((use, call.name) for use in lost))

    def reads(self, x: Tensor, reader: int) -> None:
        """A weight reads an activation; what no label says of it is noted."""
        if not self.store.past(x):
            return
        layers = [layer for layer in self.store.layers(x) if bool(layer.any())]
        mixed = self._left(self.store.marks(x).mixed, layers)
        if layers or mixed:
            self.ledger.reads_mixed(mixed, reader)
        else:
            self.ledger.reads_mixed([(None, "")], reader)

    def _left(
        self, mixed: frozenset[tuple[int, str]], layers: Sequence[Tensor]
    ) -> frozenset[tuple[int, str]]:
        left = self.ledger.not_among({use for use, _ in mixed}, layers)
        return frozenset(one for one in mixed if one[0] in left)

    def end(self, call: Call) -> None:
        """An operation that no rule knows: labels end here, and the trace says so."""
        store = self.store
        if any(store.layers(t) or (store.is_weight(t) and t.dim() > 1) for t in call.inputs()):
            self.ledger.ended[call.name] += 1
        self.settle(call, [], self.past(call), marks=self.marks(call) | self.mixes(call, []))


Rule = Callable[[Context, Call], None]


def here(t: Tensor) -> Tensor:
    """Indices as this process can read them; zeros for those on the meta device."""
    if t.device.type == "meta":
        return torch.zeros(t.shape, dtype=t.dtype)
    return t.detach().cpu()


def _channel(layers: Sequence[Tensor]) -> int | None:
    """The dimension along which outputs vary, counted from the end."""
    for layer in layers:
        for dim in range(-1, -layer.dim() - 1, -1):
            if varies(layer, dim):
                return dim
    return None


def _positions(layers: Sequence[Tensor]) -> int:
    """Pixels of an image, (N, C, H, W) or (N, H, W, C), by where its channels are."""
    for layer in layers:
        channel = _channel([layer])
        if layer.dim() in (4, 5) and channel is not None and channel != -layer.dim():
            return layer.numel() // (layer.shape[0] * layer.shape[channel])
    return 0
