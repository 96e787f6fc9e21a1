"""Attention layers by the names that most models give their weights."""

from __future__ import annotations

from dataclasses import dataclass

from spectral_monitor.model.config import HeadCounts
from spectral_monitor.model.layer_tree import Scope
from spectral_monitor.model.registry import Matrix
from spectral_monitor.pairs.attention.attention_pairs import Attention
from spectral_monitor.pairs.flow.binding import NOT_WATCHED, adapters_of
from spectral_monitor.pairs.flow.flow import Step
from spectral_monitor.pairs.flow.steps import Attend, Lost

__all__ = ["NamedAttention", "attention_in", "has_hidden_roles"]

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
class NamedAttention:
    """An attention layer that was found, and the units that it consists of."""

    units: frozenset[str]
    step: Step
    is_ambiguous: bool = False
    """Whether models with and without parallel blocks have its names."""


def attention_in(scope: Scope, counts: HeadCounts) -> NamedAttention | None:
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
        return NamedAttention(frozenset(units.values()), Lost(lost, NOT_WATCHED.format(lost)))
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
    return NamedAttention(frozenset(units.values()), step, is_ambiguous)


def has_hidden_roles(scope: Scope) -> bool:
    """Whether queries and keys are modules that hold others, of which it is not known what they do:
    these are side by side, and no chain."""
    held = {_ROLE_OF.get(name.lower()) for name, child in scope.children.items() if child.children}
    return {"q", "k"} <= held


def _is_cross(scope: Scope) -> bool:
    told = getattr(scope.module, "is_cross_attention", None)
    return bool(told) or any(word in scope.name.lower() for word in _CROSS)


def _holds_all_three(matrices: list[Matrix]) -> bool:
    """Whether a child called ``in_proj``, as many are, is the fused one of a decomposed attention
    in a state dict: told by its factors and its shape."""
    return [m.is_decomposed and m.shape[0] == 3 * m.shape[1] for m in matrices] == [True]
