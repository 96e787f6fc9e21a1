"""Which layers feed which, without running the model.

A model of a known family has the pairs of its preset (`pairs.flow.presets`); of everything else the
structure is guessed (`pairs.flow.guessed_flow`). No hook runs, and residual connections are
ignored, as in the papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spectral_monitor.model.config import HeadCounts, config_of, setting
from spectral_monitor.model.layer_tree import Scope
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.pairs.flow.binding import Binder
from spectral_monitor.pairs.flow.guessed_flow import Guess
from spectral_monitor.pairs.flow.language import parse
from spectral_monitor.pairs.flow.presets import ASIDE, Family, family_of
from spectral_monitor.pairs.flow.steps import Chain, Lost, OfFamily, Record, Step, Stream
from spectral_monitor.pairs.ports import Pair, Rejected


def discover_pairs(root: Scope, counts: HeadCounts) -> tuple[list[Pair], list[Rejected]]:
    """Pairs of the whole model, and neighbours that are none with the reason.

    Args:
        root: the tree of the model.
        counts: heads of attentions, with the config that the user gave for the model.
    """
    record = Record()
    families = _Families(record, counts, root)
    step = Guess(counts, families.step).of(root)
    if step is not None:
        step.run(record, Stream())
    for scope in _scopes(root):
        for name, reason in scope.aside.items():
            record.reject(name, "", reason)
    return list(record.pairs.values()), record.rejected


class _Families:
    """Steps of the scopes that belong to a known family."""

    def __init__(self, record: Record, counts: HeadCounts, root: Scope) -> None:
        self._record = record
        self._counts = counts
        self._root = root
        # A model's parts carry its config, too: what does not fit the whole is not tried again.
        self._refused: set[str] = set()

    def step(self, scope: Scope) -> Step | None:
        """What a scope does; ``None`` where its family is not known, or it differs from it."""
        config = config_of(scope.module)
        if config is None and scope is self._root:
            config = self._counts.config
        kind = setting(config, "model_type")
        is_named = isinstance(kind, str) and kind not in self._refused
        family = family_of(kind, config) if is_named else None
        if family is not None:
            bound = self._bound(family, kind, scope, config)
            after = Lost(scope.path, f"what is done with the output of {kind} is not known without "
                         "sk.trace or pairs=")  # fmt: skip
            return bound if bound is None or scope is self._root else Chain((bound, after))
        kind = _class_of(scope)
        family = family_of(kind, config)
        return None if family is None else self._bound(family, kind, scope, config)

    def _bound(self, family: Family, kind: str, scope: Scope, config: Any) -> Step | None:
        binder = Binder(self._counts, config)
        step = binder.bind(parse(family.flow), scope, at_top=True)
        layers = {_layer_of(m) for m in _matrices(scope) if m.name in binder.placed} - {""}
        others = [m for m in _matrices(scope) if m.name not in binder.placed and not _is_aside(m)]
        inside = [m for m in others if _layer_of(m) in layers]
        if inside or step is None:
            self._refused.add(kind)
        if inside:
            self._record.reject(
                inside[0].name, "", f"not a layer of {kind} as it is known: the whole model is "
                "read from names and order alone; sk.trace sees what feeds what",
            )  # fmt: skip
            return None
        for matrix in others:
            self._record.reject(matrix.name, "", f"not a layer of {kind} as it is known: its "
                                "neighbours are not known without sk.trace or pairs=")  # fmt: skip
        return None if step is None else OfFamily(step, kind)


def _class_of(scope: Scope) -> str:
    """``package.Class`` of a module."""
    kind = type(scope.module)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _layer_of(matrix: Matrix) -> str:
    """The path of the first numbered module that a matrix is in, such as ``model.layers.3``."""
    path: list[str] = []
    for part in matrix.parameter.split("."):
        path.append(part)
        if part.isdigit():
            return ".".join(path)
    return ""


def _is_aside(matrix: Matrix) -> bool:
    return not ASIDE.isdisjoint(matrix.parameter.split("."))


def _scopes(scope: Scope) -> Iterator[Scope]:
    yield scope
    for child in scope.children.values():
        yield from _scopes(child)


def _matrices(scope: Scope) -> Iterator[Matrix]:
    for inner in _scopes(scope):
        yield from inner.own()
