"""How parameters are reached from their model at every read, whatever was put in their place.

A parameter or a layer of the same kind that takes the place of another is read from then on. A
wrapper put around a module still has it. What is no longer there, or a layer of another kind, whose
weight may mean something else, is None, and `why` tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from spectral_kernels.entry.results import Decomposed

K = TypeVar("K", Tensor, Decomposed)

# Of torch.compile, FSDP, activation checkpointing and TransformerLens' bridge.
_WRAPPED = re.compile(
    "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_original_component"
)

# Attributes by which layers of one kind read weights of one shape differently.
_READ_BY = ("groups", "num_heads", "hidden_size", "mode")


def without_wrappers(name: str) -> str:
    """A qualified name without the parts that wrappers put into it."""
    if not _WRAPPED.search(name):
        return name
    return ".".join(part for part in name.split(".") if not _WRAPPED.fullmatch(part))


@runtime_checkable
class ExplainedGetter(Protocol):
    """A getter that can tell why it answers None."""

    def why(self) -> str:
        """Why there is no parameter any more."""
        ...


class ModulePath:
    """The way from a model to one of its modules.

    Args:
        model: the module to start from.
        path: of the module, as ``named_modules`` has it; "" for the model itself.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        self._names: list[str] = []
        self._modules = [model]
        at = model
        for name in path.split(".") if path else ():
            inner = at._modules[name]
            assert inner is not None
            at = inner
            # What a wrapper holds stands for it.
            if _WRAPPED.fullmatch(name):
                self._modules[-1] = at
            else:
                self._names.append(name)
                self._modules.append(at)
        self.first = at

    def module(self) -> nn.Module | None:
        """The module as it is now; None where it is gone, or one of another kind."""
        at = self._modules[0]
        for i, name in enumerate(self._names, start=1):
            before, now = self._modules[i], at._modules.get(name)
            if now is not before:
                if now is None:
                    return None
                if all(x is not before for x in now.modules()):
                    before = _unwrapped(now)
                    if i == len(self._names) and not _alike(self._modules[i], before):
                        return None
                    self._modules[i] = before
            at = before
        return at

    def why(self) -> str:
        """Why there is no module; "" where there is one."""
        if self.module() is not None:
            return ""
        at = self._modules[0]
        for i, name in enumerate(self._names):
            now = at._modules.get(name)
            path = ".".join(self._names[: i + 1])
            if now is None:
                return f"{path} is gone from the model"
            at = _unwrapped(now)
        was, now_is = (type(x).__name__ for x in (self._modules[-1], at))
        change = f"was a {was} and is a {now_is}" if was != now_is else f"is another kind of {was}"
        return f"{path} {change} now"


class ParameterGetter:
    """Gets a parameter of the module at the end of a way.

    The tables are asked at every read, so ``module.weight = nn.Parameter(...)``, ``param.data =
    ...`` and ``load_state_dict`` are all seen.
    """

    def __init__(self, way: ModulePath, leaf: str) -> None:
        self._way, self._leaf = way, leaf

    def __call__(self) -> Tensor | None:
        """The parameter as it is now."""
        module = self._way.module()
        if module is None:
            return None
        parameter = module._parameters.get(self._leaf)
        if parameter is None:
            # FSDP with flat parameters puts views of them in their place.
            parameter = module.__dict__.get(self._leaf)
        return parameter if isinstance(parameter, Tensor) else None

    def why(self) -> str:
        """Why there is no parameter any more."""
        module = self._way.module()
        if module is None:
            return self._way.why()
        if self._leaf in getattr(module, "parametrizations", {}):
            return f"{self._leaf} is parametrized now"
        return f"the layer has no parameter {self._leaf} any more"


class FactorsGetter:
    """Gets the factors of the decomposed layer at the end of a way."""

    def __init__(self, way: ModulePath) -> None:
        self._parts = [ParameterGetter(way, name) for name in Decomposed._fields]

    def __call__(self) -> Decomposed | None:
        """The factors as they are now."""
        factors = [part() for part in self._parts]
        return None if any(x is None for x in factors) else Decomposed(*factors)

    def why(self) -> str:
        """Why a factor is missing."""
        return next((part.why() for part in self._parts if part() is None), "")


class SameModuleGetter:
    """A getter of what one module alone has, such as a parametrized weight.

    Args:
        way: to that module.
        get: asked while it is there.
    """

    def __init__(self, way: ModulePath, get: Callable[[], Tensor | None]) -> None:
        self._way, self._get = way, get

    def __call__(self) -> Tensor | None:
        """The answer of the getter; None where the module was replaced."""
        return self._get() if self._way.module() is self._way.first else None

    def why(self) -> str:
        """Why the module is not asked any more."""
        return self._way.why() or "its layer was replaced, or has no such weight any more"


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        inner = next((m for name, m in module._modules.items() if _WRAPPED.fullmatch(name)), None)
        if inner is None:
            return module
        module = inner


def _alike(was: nn.Module, now: nn.Module) -> bool:
    """Whether the weights of two layers mean the same, if they have the same shape."""
    if not (isinstance(now, type(was)) or isinstance(was, type(now))):
        return False
    return all(getattr(was, name, None) == getattr(now, name, None) for name in _READ_BY)
