"""Attention layers: which weights are queries, keys, values and output, and how heads meet.

Queries meet keys inside a head (x W_q^T W_k x^T), so U of both sides is compared over the rows
of the head; values meet the output projection, U against V', over the columns of the head. A
fused weight is decomposed whole, and its rows are split afterwards (as in the papers' code).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from python_api.heads import HeadCounts
from python_api.layer_tree import Scope
from python_api.matrices import Matrix
from python_api.matrix_rules import fused_attention_blocks
from python_api.pairs import Pair, Port, Rejected, block_port, connect, entry_port, exit_port

__all__ = ["Attention", "find_attention"]

_ROLES = {
    "q": ("q", "q_proj", "q_proj_weight", "query", "wq", "w_q", "to_q", "q_lin", "q_linear"),
    "k": ("k", "k_proj", "k_proj_weight", "key", "wk", "w_k", "to_k", "k_lin", "k_linear"),
    "v": ("v", "v_proj", "v_proj_weight", "value", "wv", "w_v", "to_v", "v_lin", "v_linear"),
    "o": ("o", "o_proj", "out_proj", "wo", "w_o", "out_lin", "o_linear", "c_proj", "proj", "dense",
          "output", "out"),
    "qkv": ("in_proj_weight", "qkv", "qkv_proj", "wqkv", "w_qkv", "c_attn", "query_key_value"),
}  # fmt: skip
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
# GPT-NeoX and BLOOM store the roles inside each head.
_INTERLEAVED = "query_key_value"


@dataclass(slots=True)
class Attention:
    """The weights of one attention layer by role; a role may be one matrix per head."""

    roles: dict[str, list[Matrix]] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    heads: int = 1
    kv_heads: int | None = None
    interleaved: bool = False

    def entries(self) -> list[Port]:
        """Where the layer's input arrives."""
        into = [m for role in ("qkv", "q", "k", "v") for m in self.roles.get(role, [])]
        return [entry_port(matrix) for matrix in into]

    def exits(self) -> list[Port]:
        """Where the layer's output leaves; the values where the projection is elsewhere."""
        if self.roles.get("o"):
            return [exit_port(matrix) for matrix in self.roles["o"]]
        if self.roles.get("v"):
            return [exit_port(matrix) for matrix in self.roles["v"]]
        return []

    def pairs(self) -> Iterator[Pair | Rejected]:
        """Queries with keys, and values with the output, head by head."""
        try:
            queries, keys, values = (self._heads_of(role) for role in "qkv")
        except ValueError as error:
            names = [matrix.name for matrices in self.roles.values() for matrix in matrices]
            yield Rejected(names[0], names[-1], str(error))
            return
        yield from _by_head(queries, keys, "queries meet keys in each head")
        yield from _by_head(self._outputs(), values, "values meet the output", swap=True)

    def _heads_of(self, role: str) -> list[Port]:
        if self.roles.get("qkv"):
            fused = self.roles["qkv"][0]
            blocks = fused.source.blocks or fused_attention_blocks(
                fused.shape[0], self.heads, kv_heads=self.kv_heads, interleaved=self.interleaved
            )
            return [block_port(fused, b) for b in blocks if b.label.startswith(f"{role}, ")]
        matrices = self.roles.get(role, [])
        if len(matrices) != 1 or self.heads == 1:
            return [_rows(matrix, 0, 1) for matrix in matrices]
        size, rest = divmod(self.roles["q"][0].shape[0], self.heads)
        count, odd = divmod(matrices[0].shape[0], max(size, 1))
        if rest or odd:
            raise ValueError(
                f"{matrices[0].name} has {matrices[0].shape[0]} rows, which do not divide into "
                f"heads of {self.roles['q'][0].shape[0]} / {self.heads}"
            )
        return [_rows(matrices[0], head, count) for head in range(count)]

    def _outputs(self) -> list[Port]:
        outputs = [entry_port(matrix) for matrix in self.roles.get("o", [])]
        if len(outputs) != 1 or self.heads == 1:
            return outputs
        whole = outputs[0]
        size, rest = divmod(len(whole), self.heads)
        if rest:
            raise ValueError(
                f"{whole.label} has {len(whole)} columns, not a multiple of {self.heads} heads"
            )
        return [
            Port(whole.matrix, f"{whole.label}[head {h}]", whole.shape, "V", h * size,
                 (h + 1) * size, channels=size)
            for h in range(self.heads)
        ]  # fmt: skip


def _rows(matrix: Matrix, head: int, heads: int) -> Port:
    size = matrix.shape[0] // heads
    label = f"{matrix.name}[head {head}]" if heads > 1 else matrix.name
    start = head * size
    return Port(matrix.name, label, matrix.shape, "U", start, start + size, channels=size)


def _by_head(
    many: list[Port], few: list[Port], reason: str, *, swap: bool = False
) -> Iterator[Pair | Rejected]:
    """Pair two lists of heads; with grouped queries one of ``few`` serves several of ``many``."""
    if not many or not few:
        return
    if len(many) % len(few):
        why = f"{len(many)} heads cannot share {len(few)}"
        yield Rejected(many[0].label, few[0].label, why)
        return
    share = len(many) // len(few)
    for index, port in enumerate(many):
        other = few[index // share]
        answer = connect(other, port, reason) if swap else connect(port, other, reason)
        if answer is not None:
            yield answer


def find_attention(scope: Scope, counts: HeadCounts) -> Attention | None:
    """The attention layer whose weights are direct parts of this scope, if there is one."""
    found = Attention()
    for unit, names in scope.units():
        matrices = scope.of(names)
        role = _ROLE_OF.get(unit.lower())
        if unit == "in_proj" and scope.module is None and _holds_all_three(matrices):
            role = "qkv"
        if role is None or not matrices or role in found.roles:
            continue
        found.roles[role] = matrices
        found.parameters.update(names)
        found.interleaved |= unit.lower() == _INTERLEAVED
    if isinstance(scope.module, nn.MultiheadAttention):
        found.heads = scope.module.num_heads
    else:
        weights = (matrix.parameter for role in found.roles.values() for matrix in role)
        first = next(weights, scope.path)
        found.heads = counts.queries(first) or 1
        found.kv_heads = counts.keys_and_values(first)
    # One role alone says nothing: many layers are called "proj" or "out".
    is_attention = "qkv" in found.roles or {"q", "k"} <= found.roles.keys()
    return found if is_attention else None


def _holds_all_three(matrices: list[Matrix]) -> bool:
    """Whether a child called ``in_proj``, as many are, is the fused one of a decomposed attention
    in a state dict: told by its factors and its shape."""
    return [m.is_decomposed and m.shape[0] == 3 * m.shape[1] for m in matrices] == [True]
