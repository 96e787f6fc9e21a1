"""A model as a tree of names, with the watched matrices of every layer.

The tree is made of qualified names, so a state dict without modules has one too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from python_api.matrices import Matrix, Skipped

__all__ = ["Scope", "build_tree"]


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
    root = Scope("", modules.get(""), matrices=table, hidden=hidden)
    for name in names:
        scope = root
        *path, leaf = name.split(".")
        for depth, part in enumerate(path, start=1):
            if part not in scope.children:
                prefix = ".".join(path[:depth])
                scope.children[part] = Scope(
                    prefix, modules.get(prefix), matrices=table, hidden=hidden
                )
            scope = scope.children[part]
        scope.parameters[leaf] = name
    return root
