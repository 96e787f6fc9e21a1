"""A model as a tree of names, with the watched matrices of every layer.

The tree is made of qualified names, so a state dict without modules has one too. Wrappers around
layers are no part of it: a layer inside one is where it would be without, and the low-rank factors
that an adapter puts beside it are noted at the layer.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.registry import Skipped
from torch import nn

# Names under which a wrapper has what it wraps: TransformerLens' bridge, FSDP, checkpointing, PEFT.
_WRAPPED = frozenset({
    "_original_component", "original_component", "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module", "_orig_mod", "base_layer", "modules_to_save",
})  # fmt: skip
_FACTORS = {"lora_A": "lora_B"}
_ADAPTER = "beside a layer that PEFT wraps: what it does there is not known without sk.trace"


@dataclass(slots=True)
class Scope:
    """One module (or prefix of names): its own parameters, then its children, in order."""

    path: str
    module: nn.Module | None
    parameters: dict[str, str] = field(default_factory=dict)
    """Last part of the name -> qualified name."""
    children: dict[str, Scope] = field(default_factory=dict)
    matrices: Mapping[str, Sequence[Matrix]] = field(default_factory=dict)
    """Qualified parameter name -> its matrices, shared by the whole tree."""
    hidden: frozenset[str] = frozenset()
    """Parameters that are layers but are not watched, shared by the whole tree."""
    adapters: list[tuple[str, str]] = field(default_factory=list)
    """(down, up), the names of low-rank factors whose product is added to the layer's."""
    aside: dict[str, str] = field(default_factory=dict)
    """Parameter -> why it has no place among the layers."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition(".")[2]

    def units(self) -> Iterator[tuple[str, list[str]]]:
        """Direct parameters and the weights of direct children that hold nothing else.

        Yields the name that says the role, ``q_proj`` or ``W_Q``, with the parameters' names.
        """
        for leaf, name in self.parameters.items():
            yield leaf, [name]
        for child in self.children.values():
            if not child.children:
                yield child.name, list(child.parameters.values())

    def of(self, names: Iterable[str]) -> list[Matrix]:
        """The watched matrices of these parameters."""
        return [matrix for name in names for matrix in self.matrices.get(name, ())]

    def own(self) -> list[Matrix]:
        """The watched matrices of this module's own parameters."""
        return self.of(self.parameters.values())


def build_tree(
    names: Iterable[str],
    modules: Mapping[str, nn.Module],
    matrices: Sequence[Matrix],
    skipped: Sequence[Skipped],
) -> Scope:
    """The tree of all parameter names, tied ones under each of their names."""
    table: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        # A part is no layer: watched beside its whole matrix it would give every pair twice.
        if matrix.whole is not None:
            continue
        for name in (matrix.parameter, *matrix.aliases):
            table.setdefault(name, []).append(matrix)
    hidden = frozenset(row.name for row in skipped if row.is_layer) - frozenset(table)
    names = dict.fromkeys(names)
    wrapped = {name.partition(".base_layer.")[0] for name in names if ".base_layer." in name}
    root = Scope("", modules.get(""), matrices=table, hidden=hidden)
    for name in names:
        first = table[name][0].parameter if name in table else name
        if not _is_same_layer(name, first, modules):
            _place(name, root, modules, wrapped, names)
    return root


def _is_same_layer(name: str, first: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a name is another one of a layer that has been placed: a module kept under two names
    is run once, but for the entries of a list."""
    owner = name.rpartition(".")[0]
    module = modules.get(owner)
    is_again = (
        name != first and module is not None and module is modules.get(first.rpartition(".")[0])
    )
    return is_again and not owner.rpartition(".")[2].isdigit()


def _place(
    name: str,
    root: Scope,
    modules: Mapping[str, nn.Module],
    wrapped: set[str],
    names: Container[str],
) -> None:
    scope = root
    *path, leaf = name.split(".")
    for depth, part in enumerate(path, start=1):
        prefix = ".".join(path[:depth])
        before = ".".join(path[: depth - 1])
        if part in _WRAPPED or path[max(depth - 2, 0)] == "modules_to_save":
            # The inner one is the layer: its type tells what it does.
            scope.module = modules.get(prefix)
            continue
        if part == "original_module":
            scope.aside[name] = "replaced by the copy of it that is trained (modules_to_save)"
            return
        if before in wrapped:
            _beside(scope, name, before, path[depth - 1 :], names)
            return
        if part not in scope.children:
            scope.children[part] = Scope(
                prefix, modules.get(prefix), matrices=root.matrices, hidden=root.hidden
            )
        scope = scope.children[part]
    if ".".join(path) in wrapped:
        scope.aside[name] = _ADAPTER
        return
    scope.parameters[leaf] = name


def _beside(
    scope: Scope, name: str, layer: str, path: Sequence[str], names: Container[str]
) -> None:
    """Note what an adapter has beside the layer that it wraps."""
    up = _FACTORS.get(path[0])
    other = name.replace(f"{layer}.{path[0]}.", f"{layer}.{up}.")
    if up is not None and other in names:
        scope.adapters.append((name, other))
    elif path[0] not in _FACTORS.values():
        scope.aside[name] = _ADAPTER
