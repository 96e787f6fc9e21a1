"""Which layers feed which, guessed from names and order where nothing better is known.

Layers are taken in the order in which modules were registered, which is the order of the data in
`nn.Sequential` and by custom elsewhere; each is paired with the layer before it where the sizes
chain. Attention, gated layers, experts, squeeze-excitation and branches beside a block are told by
the names that most models give them. What names and order cannot tell is lost with a reason, never
guessed: how the rows of a fused weight are laid out, what a cross attention reads, whether
attention and MLP with one normalisation are parallel.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from spectral_monitor.model.config import HeadCounts
from spectral_monitor.model.layer_shapes import dense_type
from spectral_monitor.model.layer_tree import Scope
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.pairs.attention import Attention
from spectral_monitor.pairs.flow.binding import NOT_WATCHED, adapters_of, layer_of
from spectral_monitor.pairs.flow.guessed_order import SIDE_BY_SIDE, Part, all_apart, chain, in_order
from spectral_monitor.pairs.flow.recurrent import Recurrent
from spectral_monitor.pairs.flow.steps import Attend, Lost, SideBySide, Step, Table
from torch import nn

# Two layers that read the same input and are multiplied, by the names of well-known models.
_GATED = (("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))
_TABLE_WORDS = ("pos", "embed", "wpe", "wte", "shared")
_CHOICE = "a dictionary of modules: which of them run is not known without sk.trace or pairs="
_INSIDE = (
    "queries and keys that are modules of several layers: what they do is not known without "
    "sk.trace or pairs="
)
_IN_TURN = (
    "lists of as many modules beside each other, which may take turns: their order is not known "
    "without sk.trace or pairs="
)


class Guess:
    """Makes steps of scopes.

    Args:
        counts: heads of attentions.
        of_family: the step of a scope of a known family, ``None`` of others.
    """

    def __init__(self, counts: HeadCounts, of_family: Callable[[Scope], Step | None]) -> None:
        self._counts = counts
        self._of_family = of_family

    def of(self, scope: Scope) -> Step | None:
        """The step of a module, or of a prefix of names; ``None`` where there is no layer."""
        step = self._of_family(scope)
        if step is not None:
            return step
        recurrent = Recurrent.of(scope)
        if recurrent is not None:
            return recurrent
        if isinstance(scope.module, nn.ModuleDict):
            return self._apart(scope, _CHOICE)
        if _has_hidden_roles(scope):
            return self._apart(scope, _INSIDE)
        if scope.name in SIDE_BY_SIDE:
            steps = _stacked(scope) or self._children(scope)
            return SideBySide(tuple(steps)) if steps else None
        return in_order(list(self._parts(scope)), scope)

    def _children(self, scope: Scope) -> list[Step]:
        return [step for child in scope.children.values() if (step := self.of(child)) is not None]

    def _apart(self, scope: Scope, why: str) -> Step | None:
        steps = self._children(scope)
        return all_apart(steps, scope.path, why) if steps else None

    def _parts(self, scope: Scope) -> Iterator[Part]:
        """The layers of a scope in the order of registration."""
        attention = _attention_in(scope, self._counts)
        taken = frozenset() if attention is None else attention.units
        gated = _gated(scope)
        in_turn = _in_turn(scope)
        done: set[str] = set()
        for unit in [*scope.parameters, *scope.children]:
            if unit in done:
                continue
            if attention is not None and unit in taken:
                done |= taken
                yield Part(scope.name, attention.step)
            elif unit in gated:
                done |= set(gated[unit])
                both = [part.step for name in gated[unit] for part in self._part(scope, name)]
                yield Part(unit, SideBySide(tuple(both)))
            elif unit in in_turn:
                step = self._apart(scope.children[unit], _IN_TURN)
                if step is not None:
                    yield Part(unit, step)
            else:
                yield from self._part(scope, unit)

    def _part(self, scope: Scope, unit: str) -> Iterator[Part]:
        """A parameter, or a child."""
        child = scope.children.get(unit)
        if child is None:
            names = [scope.parameters[unit]]
            step = _layer(scope, names[0])
        else:
            names = list(child.parameters.values())
            step = self.of(child)
        if step is None:
            return
        attention = None if child is None else self._attention(child)
        matrices = scope.of(names)
        is_head = bool(matrices) and matrices[0].source.is_table and not isinstance(step, Table)
        yield Part(
            unit, step, attention is not None, attention is not None and attention.is_ambiguous,
            is_head,
        )  # fmt: skip

    def _attention(self, scope: Scope) -> _NamedAttention | None:
        if isinstance(scope.module, nn.MultiheadAttention):
            return _NamedAttention(frozenset(), Lost("", ""))
        return _attention_in(scope, self._counts)


def _in_turn(scope: Scope) -> list[str]:
    """Lists of as many modules beside each other, whose entries may take turns, as patch embeddings
    and blocks of stages do; the two halves of a UNet do not."""
    lists = {
        name: len(child.module)
        for name, child in scope.children.items()
        if isinstance(child.module, nn.ModuleList)
        and len(child.module) > 1
        and all(entry.children or entry.own() for entry in child.children.values())
        and not re.search("down|up|enc|dec", name)
    }
    counts = Counter(lists.values())
    return [name for name, count in lists.items() if counts[count] > 1]


def _stacked(scope: Scope) -> list[Step]:
    """Experts whose weights are stacked in parameters, each with its own of every parameter."""
    stacks = {leaf: scope.of([name]) for leaf, name in scope.parameters.items()}
    stacks = {leaf: stack for leaf, stack in stacks.items() if stack}
    counts = {len(stack) for stack in stacks.values()}
    if scope.children or len(counts) != 1 or counts == {1}:
        return []
    pairs = [pair for pair in _GATED if set(pair) <= stacks.keys()]
    beside = {up: gate for gate, up in pairs}
    experts: list[Step] = []
    for entry in range(counts.pop()):
        layers = {leaf: layer_of(scope, [stack[entry]]) for leaf, stack in stacks.items()}
        parts = []
        for leaf, layer in layers.items():
            if leaf in dict(pairs):
                parts.append(Part(leaf, SideBySide((layer, layers[dict(pairs)[leaf]]))))
            elif leaf not in beside:
                parts.append(Part(leaf, layer))
        expert = chain(parts)
        experts += [] if expert is None else [expert]
    return experts


def _layer(scope: Scope, name: str) -> Step | None:
    """The layer of one parameter."""
    matrices = scope.of([name])
    if not matrices:
        return Lost(name, NOT_WATCHED.format(name)) if name in scope.hidden else None
    if _is_table(scope, name, matrices):
        return Table(tuple(matrices), is_oriented=matrices[0].source.is_table)
    return layer_of(scope, matrices)


def _is_table(scope: Scope, name: str, matrices: Sequence[Matrix]) -> bool:
    """Whether rows are looked up or added by position, so that the layer has no input."""
    if issubclass(dense_type(scope.module), nn.Embedding | nn.EmbeddingBag):
        return True
    if scope.module is not None and name.rpartition(".")[2] == "weight":
        return False
    words = ".".join(name.lower().split(".")[-2:])
    if "unembed" in words:
        return False
    if matrices[0].source.is_table:
        # A tied head has another name, without such a word.
        return name == matrices[0].parameter or any(word in words for word in _TABLE_WORDS)
    return matrices[0].kind == "parameter" and any(word in words for word in _TABLE_WORDS)


def _gated(scope: Scope) -> dict[str, tuple[str, str]]:
    """Unit -> both units of its gated pair, for the pairs of this scope."""
    units = {unit.lower(): (unit, names) for unit, names in scope.units()}
    groups: dict[str, tuple[str, str]] = {}
    for gate, up in _GATED:
        if gate not in units or up not in units:
            continue
        both = units[gate][0], units[up][0]
        matrices = scope.of([*units[gate][1], *units[up][1]])
        # Equal and not square: layers of a plain chain called w1, w2, w3 are not meant.
        if len(matrices) == 2 and matrices[0].shape == matrices[1].shape:
            m, n = matrices[0].shape
            if m != n:
                groups.update(dict.fromkeys(both, both))
    return groups


_ROLES = {
    "q": ("q", "q_proj", "q_proj_weight", "query", "wq", "w_q", "to_q", "q_lin", "q_linear"),
    "k": ("k", "k_proj", "k_proj_weight", "key", "wk", "w_k", "to_k", "k_lin", "k_linear"),
    "v": ("v", "v_proj", "v_proj_weight", "value", "wv", "w_v", "to_v", "v_lin", "v_linear"),
    "o": ("o", "o_proj", "out_proj", "wo", "w_o", "out_lin", "o_linear", "c_proj", "proj", "dense",
          "output", "out"),
    "qkv": ("in_proj_weight", "qkv", "qkv_proj", "wqkv", "w_qkv", "c_attn", "query_key_value",
            "w_pack"),
}  # fmt: skip
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_CROSS = ("cross", "encoder_attn", "encdec", "enc_dec", "encoder_decoder", "src_attn")


@dataclass(frozen=True, slots=True)
class _NamedAttention:
    """An attention layer that was found, and the units that it consists of."""

    units: frozenset[str]
    step: Step
    is_ambiguous: bool = False
    """Whether models with and without parallel blocks have its names."""


def _attention_in(scope: Scope, counts: HeadCounts) -> _NamedAttention | None:
    """The attention layer whose weights are direct parts of this scope, if there is one."""
    roles: dict[str, list[Matrix]] = {}
    units: dict[str, str] = {}
    lost: str | None = None
    for unit, names in scope.units():
        role, matrices = _ROLE_OF.get(unit.lower()), scope.of(names)
        if unit == "in_proj" and scope.module is None and _holds_all_three(matrices):
            role = "qkv"
        hidden = next((name for name in names if name in scope.hidden), None)
        if role is None or role in roles or not (matrices or hidden):
            continue
        roles[role], units[role] = matrices, unit
        lost = lost or (None if matrices else hidden)
    # One role alone says nothing: many layers are called "proj" or "out".
    if "qkv" not in roles and not {"q", "k"} <= roles.keys():
        return None
    if {"q", "k", "v"} <= roles.keys():
        # What the fused one was split into.
        roles.pop("qkv", None)
    if lost is not None:
        return _NamedAttention(frozenset(units.values()), Lost(lost, NOT_WATCHED.format(lost)))
    name = next(iter(roles.values()))[0].parameter
    attention = Attention(
        roles,
        counts.queries(name) or 1,
        counts.keys_and_values(name),
        # PyTorch's own, of which only tensors were given; a module's own rule makes its blocks.
        "roles" if units.get("qkv", "").startswith("in_proj") else None,
    )
    adapters = {
        role: adapters_of(scope.children[unit])
        for role, unit in units.items()
        if unit in scope.children
    }
    step = Attend(attention, _is_cross(scope), adapters)
    # BLOOM and some GPT-NeoX are serial, Falcon and most GPT-NeoX parallel.
    is_ambiguous = units.get("qkv") == "query_key_value"
    return _NamedAttention(frozenset(units.values()), step, is_ambiguous)


def _has_hidden_roles(scope: Scope) -> bool:
    """Whether queries and keys are modules that hold others, of which it is not known what they do:
    these are side by side, and no chain."""
    held = {_ROLE_OF.get(name.lower()) for name, child in scope.children.items() if child.children}
    return {"q", "k"} <= held


def _is_cross(scope: Scope) -> bool:
    flag = getattr(scope.module, "is_cross_attention", None)
    return bool(flag) or any(word in scope.name.lower() for word in _CROSS)


def _holds_all_three(matrices: list[Matrix]) -> bool:
    """Whether a child called ``in_proj``, as many are, is the fused one of a decomposed attention
    in a state dict: told by its factors and its shape."""
    return [m.is_decomposed and m.shape[0] == 3 * m.shape[1] for m in matrices] == [True]
