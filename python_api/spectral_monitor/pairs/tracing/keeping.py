"""What a forward pass may write to, kept so that it can be put back: memory, containers, fields."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from spectral_monitor.pairs.tracing.calls import tensors_of
from spectral_monitor.pairs.tracing.elements import key_of
from torch import Tensor, nn

__all__ = ["Keeping"]

# Deep enough for the keys of a cache: arguments, cache, its layers, a layer, its keys.
_DEPTH = 6
_CLOSED = (nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)


class Keeping:
    """Tensors, generators and containers that outlast a pass, and how they are put back.

    Memory is copied when an operation is about to write to it, so what is only read costs nothing.
    """

    def __init__(self) -> None:
        self._known: dict[int, torch.UntypedStorage] = {}
        self._saved: dict[int, torch.UntypedStorage] = {}
        self._restore: list[Callable[[], None]] = []
        self._seen: dict[int, Any] = {}

    def add(self, value: Any, depth: int = _DEPTH) -> None:
        """Keep a value and what it holds; other modules that it refers to are none of its own."""
        if id(value) in self._seen or not depth:
            return
        if isinstance(value, Tensor):
            self._seen[id(value)] = value
            self._tensor(value)
        elif isinstance(value, torch.Generator):
            self._seen[id(value)] = value
            self._generator(value)
        elif isinstance(value, (list, dict, set, deque, tuple)):
            self._seen[id(value)] = value
            self._container(value, depth)
        elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, _CLOSED):
            self._seen[id(value)] = value
            self.add(value.__dict__, depth)

    def save(self, t: Tensor) -> None:
        """Copy a tensor's memory now, for writes that an operation does not declare."""
        if key_of(t) is None or t.is_meta:
            return
        storage = t.untyped_storage()
        self._known[storage._cdata] = storage
        self._copy(storage._cdata)

    def before(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy what an operation is about to write to, if it was there before the pass."""
        schema = getattr(function, "_schema", None)
        if schema is None or not schema.is_mutable:
            return
        for index, declared in enumerate(schema.arguments):
            if declared.alias_info is not None and declared.alias_info.is_write:
                value = args[index] if index < len(args) else kwargs.get(declared.name)
                for t in tensors_of(value):
                    if key_of(t) is not None and not t.is_meta:
                        self._copy(t.untyped_storage()._cdata)

    def restore(self) -> None:
        """Put everything back."""
        for put_back in self._restore:
            put_back()
        for name, values in self._saved.items():
            storage = self._known[name]
            if storage.nbytes() != values.nbytes():
                storage.resize_(values.nbytes())
            # Not through a tensor, whose version autograd would find changed.
            storage.copy_(values)

    def _copy(self, name: int) -> None:
        if name in self._known and name not in self._saved:
            self._saved[name] = self._known[name].clone()  # type: ignore[no-untyped-call]

    def _generator(self, generator: torch.Generator) -> None:
        state = generator.get_state()

        def put_back() -> None:
            generator.set_state(state)

        self._restore.append(put_back)

    def _tensor(self, t: Tensor) -> None:
        if key_of(t) is not None and not t.is_meta:
            storage = t.untyped_storage()
            self._known[storage._cdata] = storage
        if not t.is_leaf:
            return
        grad, needed = t.grad, t.requires_grad
        if grad is not None:
            self.add(grad)
        # `data` may be set to other memory, which no operation shows.
        values = t.data if type(t) in (Tensor, nn.Parameter) else None

        def put_back() -> None:
            if values is not None and key_of(t) != key_of(values):
                t.data = values
            if t.grad is not grad:
                t.grad = grad
            if t.requires_grad != needed:
                t.requires_grad_(needed)

        self._restore.append(put_back)

    def _container(self, value: Any, depth: int) -> None:
        entries = list(value.items()) if isinstance(value, dict) else list(value)
        for entry in entries:
            self.add(entry[1] if isinstance(value, dict) else entry, depth - 1)
        if isinstance(value, tuple):
            return

        def put_back() -> None:
            if _is_same(value, entries):
                return
            value.clear()
            value.extend(entries) if isinstance(value, (list, deque)) else value.update(entries)

        self._restore.append(put_back)


def _is_same(value: Any, entries: list[Any]) -> bool:
    """Whether a container holds the same objects as before, in the same order."""
    if len(value) != len(entries):
        return False
    if isinstance(value, dict):
        return all(
            key == name and now is then
            for (key, now), (name, then) in zip(value.items(), entries, strict=True)
        )
    return all(now is then for now, then in zip(value, entries, strict=True))
