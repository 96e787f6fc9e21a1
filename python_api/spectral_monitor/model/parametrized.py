"""Weights that a layer computes from other parameters, in modules and by name in state dicts.

`torch.nn.utils.parametrize` (spectral_norm, weight_norm, orthogonal, anybody's), the hooks that
came before it (``weight_orig``, ``weight_g``) and `torch.nn.utils.prune`. What is computed here is
the weight as the layer would have it in evaluation now: no power iteration is taken, no buffer, no
hook and no random state of the module is touched.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeGuard

import torch
from spectral_monitor.model.registry import ParameterInfo
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_CHAIN = re.compile(r"(.*\.)?parametrizations\.[^.]+")


class Computed(Protocol):
    """A getter that computes a weight; None where the module no longer has it."""

    def __call__(self) -> Tensor | None:
        """The weight as it is now, a new tensor."""

    def sample(self) -> Tensor | None:
        """A tensor of its dtype and on its device, for nothing."""


@dataclass(frozen=True, slots=True)
class Parametrized:
    """A weight that is computed, and what of."""

    leaf: str
    """Name within its module, ``weight``."""
    raw: str
    """Name, from the module on, of the parameter that has the weight's shape."""
    parts: tuple[str, ...]
    """The names of all parameters (and buffers of a state dict) that it is computed of."""
    how: str
    """``spectral_norm``, or the names of the parametrizations."""
    effective: Computed | None
    """None where names do not tell how it is computed."""


def parametrized_in(module: nn.Module) -> list[Parametrized]:
    """The computed weights of one module, not of its children."""
    weights = [
        _of_list(module, leaf, chain)
        for leaf, chain in _chains(module).items()
        if isinstance(chain, ParametrizationList)
    ]
    for hook in module._forward_pre_hooks.values():
        if is_computing(hook):
            weights.append(_of_hook(module, hook))
    return weights


def is_computing(hook: object) -> TypeGuard[SpectralNorm | WeightNorm | BasePruningMethod]:
    """Whether a hook before forward computes a weight."""
    return isinstance(hook, SpectralNorm | WeightNorm | BasePruningMethod)


def _chains(module: nn.Module) -> Mapping[str, nn.Module | None]:
    # The table itself: a missing attribute of a module is slow.
    chains = module._modules.get("parametrizations")
    return {} if chains is None else chains._modules


def _of_list(module: nn.Module, leaf: str, chain: ParametrizationList) -> Parametrized:
    path = f"parametrizations.{leaf}"
    parts = tuple(f"{path}.{name}" for name, _ in chain.named_parameters())
    how = ", ".join(_method(type(step).__name__) for step in chain)
    # Of the two of weight_norm the second has the weight's shape; others have the weight first.
    raw = "original" if chain.is_tensor else "original1" if how == "weight_norm" else "original0"
    return Parametrized(leaf, f"{path}.{raw}", parts, how, _Chain(module, leaf))


def _of_hook(
    module: nn.Module, hook: SpectralNorm | WeightNorm | BasePruningMethod
) -> Parametrized:
    if isinstance(hook, BasePruningMethod):
        leaf, how, endings = hook._tensor_name, "prune", ["_orig"]
    elif isinstance(hook, SpectralNorm):
        leaf, how, endings = hook.name, "spectral_norm", ["_orig"]
    else:
        leaf, how, endings = hook.name, "weight_norm", ["_g", "_v"]
    parts = tuple(leaf + ending for ending in endings)
    return Parametrized(leaf, parts[-1], parts, how, _Hook(module, hook, leaf, parts[-1]))


def _method(name: str) -> str:
    return {"_SpectralNorm": "spectral_norm", "_WeightNorm": "weight_norm",
            "_Orthogonal": "orthogonal"}.get(name, name)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Chain:
    module: nn.Module
    leaf: str

    def __call__(self) -> Tensor | None:
        chain = self._chain()
        if chain is None:
            return self.module._parameters.get(self.leaf)
        with torch.no_grad():
            weight: Tensor = _aside(chain).forward()
        return weight

    def sample(self) -> Tensor | None:
        chain = self._chain()
        if chain is None:
            return self.module._parameters.get(self.leaf)
        tensor: Tensor = chain.original if chain.is_tensor else chain.original0  # type: ignore[assignment]
        return tensor

    def _chain(self) -> ParametrizationList | None:
        chain = _chains(self.module).get(self.leaf)
        return chain if isinstance(chain, ParametrizationList) else None


def _aside(module: nn.Module) -> nn.Module:
    """The module in evaluation, without hooks, with its parameters and copies of its buffers."""
    twin = copy.copy(module)
    twin.__dict__.update(
        training=False,
        _modules={n: None if m is None else _aside(m) for n, m in module._modules.items()},
        _buffers={n: None if b is None else b.clone() for n, b in module._buffers.items()},
        _forward_hooks={},
        _forward_pre_hooks={},
    )
    return twin


@dataclass(frozen=True, slots=True)
class _Hook:
    module: nn.Module
    hook: SpectralNorm | WeightNorm | BasePruningMethod
    leaf: str
    raw: str

    def __call__(self) -> Tensor | None:
        if self.sample() is None:
            return None
        with torch.no_grad():
            weight: Tensor
            if isinstance(self.hook, BasePruningMethod):
                weight = self.hook.apply_mask(self.module)  # type: ignore[no-untyped-call]
            elif isinstance(self.hook, SpectralNorm):
                weight = self.hook.compute_weight(self.module, do_power_iteration=False)
            else:
                weight = self.hook.compute_weight(self.module)
            return weight

    def sample(self) -> Tensor | None:
        # `remove_spectral_norm` and the like leave the weight as a parameter.
        own = self.module._parameters
        return own[self.raw] if self.raw in own else own.get(self.leaf)


def parametrized_names(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Parametrized]]:
    """Computed weights of a state dict: the path of each module, and what names tell of it."""
    inside: dict[str, list[str]] = {}
    for name in tensors:
        place = _CHAIN.match(name)
        if place is not None:
            inside.setdefault(place.group(), []).append(name)
    for name in tensors:
        path, _, end = name.rpartition(".")
        owner, is_chain, chain = f".{path}".rpartition(".parametrizations.")
        if is_chain and "." not in chain and end in ("original", "original1"):
            weight = _of_chain_names(tensors, path, chain, end, inside[path])
        elif not is_chain and end.endswith(("_orig", "_v")):
            owner, weight = f".{path}", _of_hook_names(tensors, path, end)
        else:
            continue
        if weight is not None:
            yield owner.removeprefix("."), weight


def _of_chain_names(
    tensors: Mapping[str, Tensor], path: str, leaf: str, end: str, inside: Sequence[str]
) -> Parametrized | None:
    within = f"parametrizations.{leaf}"
    parts = tuple(f"{within}.{n.removeprefix(f'{path}.')}" for n in inside)
    u, v = f"{path}.0._u", f"{path}.0._v"
    how = "a parametrization"
    get: Computed | None = None
    if end == "original1":
        g = f"{path}.original0"
        if g not in tensors or not _scales(tensors[g], tensors[f"{path}.{end}"]):
            return None
        how, get = "weight_norm", _WeightNorm(tensors, g, f"{path}.{end}")
    elif {u, v} <= set(inside):
        how, get = "spectral_norm", _SpectralNorm(tensors, f"{path}.{end}", u, v)
    return Parametrized(leaf, f"{within}.{end}", parts, how, get)


def _of_hook_names(tensors: Mapping[str, Tensor], path: str, end: str) -> Parametrized | None:
    leaf, _, ending = end.rpartition("_")
    prefix = f"{path}.{leaf}" if path else leaf
    raw, u, v, mask, g = (f"{prefix}_{x}" for x in (ending, "u", "v", "mask", "g"))
    get: Computed
    if ending == "v":
        if g not in tensors or not _scales(tensors[g], tensors[raw]):
            return None
        how, endings, get = "weight_norm", "g v", _WeightNorm(tensors, g, raw)
    elif mask in tensors:
        how, endings, get = "prune", "orig mask", _Mask(tensors, raw, mask)
    elif u in tensors and v in tensors:
        how, endings, get = "spectral_norm", "orig u v", _SpectralNorm(tensors, raw, u, v)
    else:
        return None
    parts = tuple(f"{leaf}_{x}" for x in endings.split())
    return Parametrized(leaf, f"{leaf}_{ending}", parts, how, get)


def _scales(g: Tensor, v: Tensor) -> bool:
    """Whether these are the lengths and the directions of weight_norm."""
    if g.dim() == 0:
        return True
    sides = [a for a, b in zip(g.shape, v.shape, strict=False) if a == b and a != 1]
    return g.dim() == v.dim() and g.numel() == (sides[0] if sides else 1)


class _Names:
    """A getter that computes from tensors of a mapping, whose names are `needed`."""

    def __init__(self, tensors: Mapping[str, Tensor], *needed: str) -> None:
        self._tensors, self._needed = tensors, needed

    def __call__(self) -> Tensor | None:
        tensors = [self._tensors.get(name) for name in self._needed]
        present = [x.detach() for x in tensors if x is not None]
        return self._of(*present) if len(present) == len(tensors) else None

    def sample(self) -> Tensor | None:
        return self._tensors.get(self._needed[0])

    def _of(self, *tensors: Tensor) -> Tensor:
        raise NotImplementedError


class _WeightNorm(_Names):
    def _of(self, *tensors: Tensor) -> Tensor:
        g, v = tensors
        sides = [i for i in range(v.dim()) if g.dim() == 0 or g.shape[i] == 1]
        length: Tensor = torch.linalg.vector_norm(v, dim=sides, keepdim=True)
        return v * (g / length)


class _SpectralNorm(_Names):
    def _of(self, *tensors: Tensor) -> Tensor:
        weight, u, v = tensors
        # Transposed convolutions are normalised along their second axis.
        first = weight if len(u) == len(weight) else weight.transpose(0, 1)
        return weight / torch.dot(u, first.reshape(len(u), -1) @ v)


class _Mask(_Names):
    def _of(self, *tensors: Tensor) -> Tensor:
        weight, mask = tensors
        return weight * mask.to(weight.dtype)


Shown = Literal["effective", "raw"]

# Their other parameters are lengths, estimates and masks; a parametrization of somebody's own may
# have matrices in it, which are watched where the raw weight is.
_WITHOUT_MATRICES = ("spectral_norm", "weight_norm", "prune")


class ParametrizedWeights:
    """The parametrized weights of a model, as their owners are met.

    Args:
        shown: what stands for a weight. One that cannot be computed is shown raw, with the reason.
    """

    def __init__(self, shown: Shown) -> None:
        self._shown_as = shown
        self._values: dict[str, Tensor] = {}
        self._made: dict[str, tuple[str, str]] = {}
        self._raw: set[str] = set()
        self._failed: dict[str, str] = {}

    def note(self, path: str, made: Parametrized) -> None:
        """A weight of the module at ``path``; to be called once for each."""
        weight = _under(path, made.leaf)
        value = self._computed(weight, made)
        if value is not None:
            self._values[weight] = value
        else:
            self._raw.add(_under(path, made.raw))
        if value is not None or made.how in _WITHOUT_MATRICES:
            for part in made.parts:
                self._made[_under(path, part)] = (weight, made.how)

    def _computed(self, weight: str, made: Parametrized) -> Tensor | None:
        if self._shown_as == "raw":
            return None
        if made.effective is None:
            self._failed[weight] = "which names do not tell"
            return None
        try:
            return made.effective()
        # Code of anybody's, for what is there now; the weight is still there raw.
        except Exception as error:
            self._failed[weight] = f"which cannot be computed here: {type(error).__name__}: {error}"
            return None

    def weight(
        self, path: str, made: Parametrized, raw: Tensor, get_raw: Callable[[], Tensor | None]
    ) -> tuple[ParameterInfo, Callable[[], Tensor | None]]:
        """A noted weight as a parameter, and its getter."""
        name, raw_name = _under(path, made.leaf), _under(path, made.raw)
        value = self._values.get(name)
        info = ParameterInfo(name, made.leaf, raw, None, None, made_by=made.how)
        if value is None or made.effective is None:
            how = ", ".join(filter(None, (made.how, self._failed.get(name))))
            return replace(info, form="raw", made_by=how, made_of=(raw_name,)), get_raw
        parts = tuple(_under(path, part) for part in made.parts)
        get = made.effective
        return (
            replace(
                info, tensor=value, form="effective", made_of=parts, origin=raw, sample=get.sample
            ),
            get,
        )

    def is_shown(self, name: str) -> bool:
        """Whether this parameter is the raw one that stands for a weight."""
        return name in self._raw

    def marked(self, info: ParameterInfo) -> ParameterInfo:
        """A parameter with the weight that it is a factor of, if it is one."""
        weight, how = self._made.get(info.name, (None, ""))
        return info if weight is None else replace(info, factor_of=weight, made_by=how)


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
