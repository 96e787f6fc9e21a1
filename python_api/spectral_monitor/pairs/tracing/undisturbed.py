"""A forward pass that leaves no trace of itself in the model.

What the pass may write to (memory, containers, fields) is kept so that it can be put back, and
weights that layers compute of other parameters are one weight each for the time of the pass.
"""

from __future__ import annotations

import contextlib
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from spectral_monitor.model.getters import without_wrappers
from spectral_monitor.model.parametrized import Parametrized, is_computing, parametrized_in
from spectral_monitor.pairs.tracing.context import tensors_of
from spectral_monitor.pairs.tracing.elements import key_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize


@contextlib.contextmanager
def undisturbed(model: nn.Module, inputs: Any = ()) -> Iterator[Keeping]:
    """Inside, the model is in evaluation mode without gradients, and every operation is visible.

    Afterwards flags, attributes, weights, gradients, buffers, inputs, caches that hang on either
    and the random states of torch, NumPy and Python are what they were; what the pass writes to is
    kept where `Keeping.before` is told of every operation. Fast paths that skip PyTorch's own
    operations are off: those of `nn.MultiheadAttention` and `nn.TransformerEncoder`, compiled
    functions, fused attention; so is the memory of casts, which does not say what was cast.
    """
    attributes = [_Attributes(module) for module in model.modules()]
    keeping = _keeping_of(model, inputs)
    states = random.getstate(), np.random.get_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    caches = torch.is_autocast_cache_enabled()
    try:
        with contextlib.ExitStack() as stack:
            devices = list(range(torch.cuda.device_count())) if _has_cuda() else []
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            # Without it nothing is compiled, and the import takes seconds.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            torch.backends.mha.set_fastpath_enabled(False)
            torch.clear_autocast_cache()
            torch.set_autocast_cache_enabled(False)
            # Not by ``eval()``: some modules merge weights or empty caches there.
            for module in model.modules():
                module.training = False
            yield keeping
    finally:
        torch.set_autocast_cache_enabled(caches)
        torch.backends.mha.set_fastpath_enabled(fast)
        for kept in attributes:
            kept.restore()
        keeping.restore()
        random.setstate(states[0])
        np.random.set_state(states[1])


def _keeping_of(model: nn.Module, inputs: Any) -> Keeping:
    """Note all that the pass can reach and write to, and copy the buffers.

    Norms do not declare that they write to their buffers.
    """
    keeping = Keeping()
    keeping.add(inputs)
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name != "_modules":
                keeping.add(value)
        for buffer in module._buffers.values():
            if buffer is not None:
                keeping.save(buffer)
    return keeping


def _has_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class _Attributes:
    """What a module's own dictionaries hold: the same objects under the same names."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._own = dict(module.__dict__)
        tables = ("_parameters", "_buffers", "_modules")
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (module.__dict__[name], dict(module.__dict__[name])) for name in tables
        ]

    def restore(self) -> None:
        now = self._module.__dict__
        now.clear()
        now.update(self._own)
        for table, before in self._tables:
            table.clear()
            table.update(before)


# Deep enough for the keys of a cache: arguments, cache, its layers, a layer, its keys.
_DEPTH = 6
_CLOSED = (nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)


class Keeping:
    """Tensors, generators and containers that outlast a pass, and how they are put back.

    Memory is copied when an operation is about to write to it, so what is only read costs nothing.
    """

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
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
        self._storages[storage._cdata] = storage
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
            storage = self._storages[name]
            if storage.nbytes() != values.nbytes():
                storage.resize_(values.nbytes())
            # Not through a tensor, whose version autograd would find changed.
            storage.copy_(values)

    def _copy(self, name: int) -> None:
        if name in self._storages and name not in self._saved:
            self._saved[name] = self._storages[name].clone()  # type: ignore[no-untyped-call]

    def _generator(self, generator: torch.Generator) -> None:
        state = generator.get_state()

        def put_back() -> None:
            generator.set_state(state)

        self._restore.append(put_back)

    def _tensor(self, t: Tensor) -> None:
        if key_of(t) is not None and not t.is_meta:
            storage = t.untyped_storage()
            self._storages[storage._cdata] = storage
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


@dataclass(frozen=True, slots=True)
class Fixed:
    """Computed weights by name, and the parameters that they stand for."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)


@contextlib.contextmanager
def fixed_weights(model: nn.Module) -> Iterator[Fixed]:
    """Inside, parametrized weights are computed once, and are what the forward method sees.

    To be used where the attributes of modules are restored afterwards (`running.undisturbed`).
    """
    fixed = Fixed()
    by_module: dict[int, list[tuple[Parametrized, Tensor]]] = {}
    with parametrize.cached():
        for path, module in model.named_modules(remove_duplicate=False):
            # A shared module is met again, when its hooks are gone.
            for made, weight in by_module.setdefault(id(module), _fixed_in(module)):
                prefix = f"{path}." if path else ""
                fixed.weights[without_wrappers(prefix + made.leaf)] = weight
                fixed.parts.update(without_wrappers(prefix + part) for part in made.parts)
        yield fixed


def _fixed_in(module: nn.Module) -> list[tuple[Parametrized, Tensor]]:
    weights = []
    for made in parametrized_in(module):
        # What is cached is computed when it is first asked for.
        weight = getattr(module, made.leaf)
        if made.leaf in module.__dict__:
            computed = None if made.effective is None else made.effective()
            assert computed is not None
            weight = module.__dict__[made.leaf] = computed
        weights.append((made, weight))
    if any(made.leaf in module.__dict__ for made, _ in weights):
        hooks = module._forward_pre_hooks.items()
        # A new table: the old one is put back as it was.
        module.__dict__["_forward_pre_hooks"] = OrderedDict(
            (key, hook) for key, hook in hooks if not is_computing(hook)
        )
    return weights
