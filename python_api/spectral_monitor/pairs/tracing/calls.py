"""One operation of a forward pass, with its arguments by the names of its schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from spectral_monitor.pairs.tracing.elements import key_of
from torch import Tensor

__all__ = ["Call", "tensors_of", "words"]


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

    def inputs(self) -> list[Tensor]:
        """All tensors among the arguments, but for one that is only written to."""
        found = []
        for name, value in self.arguments.items():
            if name != "out":
                found += list(tensors_of(value))
        return found

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
