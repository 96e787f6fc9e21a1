"""From a flow in the notation of `pairs.flow.language` to steps over one model's matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from spectral_monitor.model.config import HeadCounts
from spectral_monitor.model.layer_tree import Scope
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.submatrices import submatrix
from spectral_monitor.pairs.attention import Attention
from spectral_monitor.pairs.flow.language import Flow
from spectral_monitor.pairs.flow.steps import (
    Attend,
    Chain,
    Ended,
    Layer,
    Lost,
    Meet,
    Remember,
    Same,
    SideBySide,
    Step,
    Table,
)
from spectral_monitor.pairs.latent_attention import LatentAttention
from spectral_monitor.pairs.ports import exit_port

NOT_WATCHED = "{} between them is not watched"


class Binder:
    """Binds flows to the layers of one model.

    Args:
        counts: heads of attentions.
        config: of the model, for the sizes of its heads.
    """

    def __init__(self, counts: HeadCounts, config: Any = None) -> None:
        self._counts = counts
        self._config = config
        # Which of stacked matrices is meant, inside `Apart`.
        self._entry: int | None = None
        self.placed: set[str] = set()
        """Names of matrices that the flow has spoken of."""

    def bind(self, flow: Flow, scope: Scope, *, at_top: bool = False) -> Step | None:
        """The step; ``None`` where the model has nothing of it.

        Args:
            flow: what feeds what.
            scope: what its paths start from.
            at_top: whether they may start further down as well.
        """
        match flow.kind:
            case ".":
                return Same()
            case "?":
                is_there = self._names(scope, flow.path) or _descend(scope, flow.path)
                return self.bind(flow.parts[0 if is_there else 1], scope, at_top=at_top)
            case ">" | "&" | "~" | "-" | ">>":
                parts = [self.bind(part, scope, at_top=at_top) for part in flow.parts]
                return _put_together(flow.kind, parts)
        # All others have a path.
        for path in flow.path.split("|"):
            start = _start(scope, path) if at_top else scope
            step = self._bind_at(flow, start, path)
            if step is not None:
                return step
        return None

    def _bind_at(self, flow: Flow, start: Scope, path: str) -> Step | None:
        if flow.kind in ("", "#", "/", "+/", "%"):
            return self._unit(flow, start, path)
        scope = _descend(start, path)
        if scope is None:
            return None
        match flow.kind:
            case "(":
                return self.bind(flow.parts[0], scope)
            case "=":
                return self._apart(flow.parts[0], scope)
            case "{":
                return self._attention(dict(flow.options), scope)
        bound = [self.bind(flow.parts[0], child) for child in scope.children.values()]
        return _put_together("&" if flow.kind == "+" else ">", bound)

    def _apart(self, flow: Flow, scope: Scope) -> Step | None:
        stacks = [scope.of(names) for _, names in scope.units()]
        counts = {len(stack) for stack in stacks if stack}
        if len(counts) != 1:
            return None
        steps: list[Step | None] = []
        for self._entry in range(counts.pop()):
            steps.append(self.bind(flow, scope))
        self._entry = None
        return _put_together("&", steps)

    def _names(self, scope: Scope, path: str) -> tuple[Scope, list[str]] | None:
        """The parameters of a unit, with the scope that has them."""
        before, _, leaf = path.rpartition(".")
        owner = _descend(scope, before)
        if owner is None:
            return None
        if leaf in owner.parameters:
            return owner, [owner.parameters[leaf]]
        unit = owner.children.get(leaf)
        if unit is None or unit.children:
            return None
        return unit, list(unit.parameters.values())

    def _matrices(self, scope: Scope, names: list[str]) -> list[Matrix]:
        matrices = scope.of(names)
        self.placed.update(matrix.name for matrix in matrices)
        return matrices if self._entry is None else matrices[self._entry : self._entry + 1]

    def _unit(self, flow: Flow, scope: Scope, path: str) -> Step | None:
        unit = self._names(scope, path)
        if unit is None:
            return None
        owner, names = unit
        matrices = self._matrices(owner, names)
        if not matrices:
            hidden = [name for name in names if name in scope.hidden]
            return Lost(hidden[0], NOT_WATCHED.format(hidden[0])) if hidden else None
        if flow.kind == "#":
            return Table(tuple(matrices))
        layer = layer_of(owner, matrices, flow.rows if flow.kind == "/" else ())
        leading = flow.rows[0] if flow.kind == "+/" else ""
        return replace(layer, leading=leading, neighbours=flow.neighbours)

    def _attention(self, roles: dict[str, str], scope: Scope) -> Step | None:
        units = {
            role: unit
            for role, path in roles.items()
            if role in _ROLES and (unit := self._names(scope, path)) is not None
        }
        by_role = {role: self._matrices(owner, names) for role, (owner, names) in units.items()}
        if {"q", "k", "v"} <= by_role.keys():
            by_role.pop("qkv", None)
        for role, (_, names) in units.items():
            hidden = [name for name in names if name in scope.hidden]
            if hidden and not by_role.get(role):
                return Lost(hidden[0], NOT_WATCHED.format(hidden[0]))
        present = {role: matrices for role, matrices in by_role.items() if matrices}
        if not present:
            return None
        name = next(iter(present.values()))[0].parameter
        heads = self._counts.queries(name) or 1
        adapters = {role: adapters_of(owner) for role, (owner, _) in units.items()}
        if "kv_b" in present or "kv_a" in present:
            return Attend(LatentAttention.of(present, heads, self._config), adapters=adapters)
        kv_option = roles.get("kv")
        kv = self._counts.keys_and_values(name) if kv_option is None else _count(kv_option, heads)
        attention = Attention(present, heads=heads, kv_heads=kv, layout=roles.get("layout"))
        return Attend(attention, is_cross="cross" in roles, adapters=adapters)


def _count(option: str, heads: int) -> int:
    return heads if option == "all" else int(option)


_ROLES = frozenset({"q", "k", "v", "o", "qkv", "q_a", "q_b", "kv_a", "kv_b"})


def layer_of(scope: Scope, matrices: list[Matrix], parts: tuple[str, ...] = ()) -> Layer:
    """A layer with the adapters of its scope, whose rows may go on apart."""
    exits = None
    if parts:
        exits = tuple(exit_port(part) for matrix in matrices for part in _equal(matrix, parts))
    return Layer(tuple(matrices), exits, adapters_of(scope))


def _equal(matrix: Matrix, labels: tuple[str, ...]) -> Iterator[Matrix]:
    size = matrix.shape[0] // len(labels)
    for index, label in enumerate(labels):
        if label:
            yield submatrix(matrix, label, rows=[(index * size, (index + 1) * size)])


def adapters_of(scope: Scope) -> tuple[tuple[Matrix, Matrix], ...]:
    """(down, up) of every adapter of a layer."""
    adapters = []
    for down, up in scope.adapters:
        adapters += list(zip(scope.of([down]), scope.of([up]), strict=False))
    return tuple(adapters)


def _put_together(kind: str, parts: list[Step | None]) -> Step | None:
    """The steps of a node as one, by the node's sign; those that the model has not are left out."""
    steps = tuple(step for step in parts if step is not None)
    if not steps or (kind == "&" and all(isinstance(step, Same) for step in steps)):
        return None
    match kind:
        case "-":
            return Ended(steps[0])
        case ">>":
            return Remember(steps[0])
        case "~" if len(steps) == 2:
            return Meet(*steps)
    if len(steps) == 1:
        return steps[0]
    return SideBySide(steps) if kind == "&" else Chain(steps)


def _descend(scope: Scope, path: str) -> Scope | None:
    inner: Scope | None = scope
    for part in path.split(".") if path else ():
        inner = None if inner is None else inner.children.get(part)
    return inner


def _start(scope: Scope, path: str) -> Scope:
    """The nearest scope below that has what a path starts with."""
    first = path.partition(".")[0]
    level = [scope]
    while level:
        for candidate in level:
            if first in candidate.children or first in candidate.parameters:
                return candidate
        level = [
            child
            for candidate in level
            for name, child in candidate.children.items()
            if not name.isdigit() and not any(x.isdigit() for x in candidate.children)
        ]
    return scope
