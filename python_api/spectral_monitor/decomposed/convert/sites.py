"""The layers of a model by name, and which of them a user's patterns mean."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from spectral_monitor.decomposed.convert.kinds import is_attention
from spectral_monitor.model.names import matches
from torch import nn

Setting = TypeVar("Setting")

# By name: importing them would load what torch loads only when it is used.
_WRAPPERS = (
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "GraphModule",
    "OptimizedModule",
    "ScriptModule",
)


@dataclass(frozen=True, slots=True)
class Site:
    """One module and every name under which the model has it."""

    module: nn.Module
    names: tuple[str, ...]
    wholes: tuple[str, ...] = ()
    """Names of the attention that the module is a part of; a pattern for these means it too."""

    @property
    def label(self) -> str:
        """The first name; the root of the model, which has none, by its type."""
        return self.names[0] or f"the model ({type(self.module).__name__})"


def find_sites(model: nn.Module) -> list[Site]:
    """Every module once, in the order of the model.

    Raises:
        TypeError: not a module.
        ValueError: a wrapper, which knows its parameters already and would not see new ones.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        wrappers = [base.__name__ for base in type(module).__mro__ if base.__name__ in _WRAPPERS]
        if wrappers:
            raise ValueError(
                f"{name or 'the model'} is wrapped in {wrappers[0]}, which keeps the parameters "
                "that it was made with; expected the module before it is compiled, traced or made "
                "data-parallel"
            )
        names.setdefault(module, []).append(name)
    wholes = {name for module, own in names.items() if is_attention(module) for name in own}
    return [
        Site(module, tuple(own), tuple(p for p in map(_parent, own) if p in wholes))
        for module, own in names.items()
    ]


def join(*parts: str) -> str:
    """A qualified name from its parts, of which any may be empty."""
    return ".".join(part for part in parts if part)


@contextlib.contextmanager
def named(site: Site) -> Iterator[None]:
    """Put the name of a layer before what it says is wrong with it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{site.label}: {error}") from error


def as_patterns(option: str, patterns: str | Iterable[str]) -> list[str]:
    """One pattern or several as a list of strings."""
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in listed:
        if not isinstance(pattern, str):
            raise TypeError(f"{option} holds {pattern!r}; expected patterns of names as strings")
    return listed


def select(
    option: str,
    sites: Sequence[Site],
    patterns: Sequence[str],
    reason_against: Callable[[Site], str | None],
) -> list[Site]:
    """The sites that any of ``patterns`` fits and that nothing is said against.

    Raises:
        ValueError: a pattern that fits no such site, with near names or what it fits instead.
    """
    fitting = {site: None for site in sites if reason_against(site) is None}
    for pattern in patterns:
        fitted = [site for site in sites if _fits(site, pattern)]
        if not any(site in fitting for site in fitted):
            raise ValueError(f"{option}: {_unmatched(pattern, fitted, fitting, reason_against)}")
    return [site for site in fitting if any(_fits(site, pattern) for pattern in patterns)]


def assign(
    option: str, sites: Sequence[Site], settings: Mapping[str, Setting]
) -> dict[Site, Setting]:
    """For each site the setting of the first pattern that fits one of its names.

    Raises:
        ValueError: a pattern that an earlier one leaves nothing.
    """
    chosen: dict[Site, str] = {}
    for site in sites:
        first = next((pattern for pattern in settings if _fits(site, pattern)), None)
        if first is not None:
            chosen[site] = first
    for pattern in settings:
        if pattern not in chosen.values():
            site = next(site for site in sites if _fits(site, pattern))
            raise ValueError(
                f"{option}: the pattern {pattern!r} is never used, because {chosen[site]!r} stands "
                f"before it and fits {site.label} too; expected the narrower pattern first"
            )
    return {site: settings[pattern] for site, pattern in chosen.items()}


def replace(model: nn.Module, replacements: Mapping[Site, nn.Module]) -> nn.Module:
    """Put each new module at every place of the old one; the new root if that is replaced."""
    root = model
    for site, module in replacements.items():
        for name in site.names:
            if name == "":
                root = module
                continue
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module)
    return root


def _parent(name: str) -> str | None:
    return name.rpartition(".")[0] if name else None


def _fits(site: Site, pattern: str) -> bool:
    return any(matches(name, pattern) for name in (*site.names, *site.wholes))


def _unmatched(
    pattern: str,
    fitted: Sequence[Site],
    fitting: Iterable[Site],
    reason_against: Callable[[Site], str | None],
) -> str:
    """Why a pattern fits nothing that could be meant."""
    names = [name for site in fitting for name in site.names]
    if not fitted:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
        hint = f"near names: {', '.join(near)}" if near else f"layers: {', '.join(names[:8])}"
        return f"the pattern {pattern!r} fits no module; {hint}"
    # Layers say more than what they are in.
    layers_first = sorted(fitted, key=lambda site: any(site.module.children()))
    reasons = "; ".join(f"{site.label} {reason_against(site)}" for site in layers_first[:3])
    inside = next(
        (n for site in fitted for n in names if any(n.startswith(f"{s}.") for s in site.names)),
        None,
    )
    hint = f"; for what is inside, as {inside}, write '{pattern}.*'" if inside else ""
    return f"the pattern {pattern!r} fits no layer that can be meant: {reasons}{hint}"
