"""Attention layers: which weights are queries, keys, values and output, and how heads meet.

Queries meet keys inside a head, in x W_q^T W_k x^T: U of each head's rows of W_q meets U of those
of W_k, and the pair has the mean over the heads. Values meet the output projection, U against V',
twice: the rows of all heads as one matrix with all of W_o, and head by head with the columns that
each head writes to. Each of these blocks has an SVD of its own. (So in the code of Yunis et al. for
queries and keys, and for values and output whole; the text of their appendix D.4 has it by head.)
The layer before feeds a fused weight as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import nn

from python_api.heads import HeadCounts
from python_api.layer_tree import Scope
from python_api.matrices import Block, Matrix
from python_api.matrix_rules import fused_attention_blocks
from python_api.pairs import Meeting, Pair, Port, Rejected, connect, entry_port, exit_port
from python_api.parts import part_of, stacked

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
        """Queries with keys, and values with the output."""
        try:
            queries, keys, values = (self._heads_of(role) for role in "qkv")
            outputs = self._outputs()
        except ValueError as error:
            names = [matrix.name for matrices in self.roles.values() for matrix in matrices]
            yield Rejected(names[0], names[-1], str(error))
            return
        if queries and keys:
            yield _by_head(
                (self._label("q"), self._label("k")),
                [_outputs_of(matrix) for matrix in queries],
                [_outputs_of(matrix) for matrix in keys],
                "queries meet keys in each head",
            )
        if values and outputs:
            yield from self._values_meet_output(values, outputs)

    def _values_meet_output(
        self, values: list[Matrix], outputs: list[Matrix]
    ) -> Iterator[Pair | Rejected]:
        ends = self._label("v"), self._label("o")
        if len(values) == len(outputs):
            yield self._whole(ends, values, outputs)
        else:
            yield Rejected(
                *ends,
                f"{len(outputs)} heads of the output read {len(values)} of the values: whole, the "
                "two do not chain; they are paired by head",
            )
        if len(outputs) > 1:
            yield _by_head(
                (_with(ends[0], "by head"), _with(ends[1], "by head")),
                [_outputs_of(matrix) for matrix in values],
                [entry_port(matrix) for matrix in outputs],
                "values meet the output in each head",
            )

    def _whole(
        self, ends: tuple[str, str], values: list[Matrix], outputs: list[Matrix]
    ) -> Pair | Rejected:
        try:
            first = _outputs_of(self._all_of("v", values))
            answer = connect(
                first, entry_port(self._all_of("o", outputs)), "values meet the output"
            )
        except ValueError as error:
            return Rejected(*ends, str(error))
        if isinstance(answer, Pair):
            return replace(answer, first=ends[0], second=ends[1])
        return answer or Rejected(*ends, "the two share no channel")

    def _label(self, role: str) -> str:
        """Name of a role's weights."""
        if role != "o" and self.roles.get("qkv"):
            return f"{self.roles['qkv'][0].name}[{role}]"
        matrices = self.roles[role]
        names = [matrices[0].name] if len(matrices) == 1 else [m.parameter for m in matrices]
        return " + ".join(dict.fromkeys(names))

    def _all_of(self, role: str, heads: list[Matrix]) -> Matrix:
        """All heads of the values, or of the output, as one matrix."""
        if role == "v" and self.roles.get("qkv"):
            return part_of(self.roles["qkv"][0], "v", rows=[
                (block.start, block.stop) for block in self._blocks("v")
            ])  # fmt: skip
        matrices = self.roles[role]
        if len(matrices) == 1:
            return matrices[0]
        return stacked(heads, self._label(role), columns=role == "o")

    def _blocks(self, role: str) -> list[Block]:
        """Rows of a fused weight that belong to the heads of a role."""
        fused = self.roles["qkv"][0]
        blocks = fused.source.blocks or fused_attention_blocks(
            fused.shape[0], self.heads, kv_heads=self.kv_heads, interleaved=self.interleaved
        )
        return [block for block in blocks if block.label.startswith(f"{role}, ")]

    def _heads_of(self, role: str) -> list[Matrix]:
        """A matrix for each head."""
        if self.roles.get("qkv"):
            fused = self.roles["qkv"][0]
            return [part_of(fused, b.label, rows=[(b.start, b.stop)]) for b in self._blocks(role)]
        matrices = self.roles.get(role, [])
        if len(matrices) != 1 or self.heads == 1:
            return matrices
        size, rest = divmod(self.roles["q"][0].shape[0], self.heads)
        count, odd = divmod(matrices[0].shape[0], max(size, 1))
        if rest or odd:
            raise ValueError(
                f"{matrices[0].name} has {matrices[0].shape[0]} rows, which do not divide into "
                f"heads of {self.roles['q'][0].shape[0]} / {self.heads}"
            )
        return [
            part_of(matrices[0], f"head {h}", rows=[(h * size, (h + 1) * size)])
            for h in range(count)
        ]

    def _outputs(self) -> list[Matrix]:
        matrices = self.roles.get("o", [])
        if len(matrices) != 1 or self.heads == 1:
            return matrices
        n = matrices[0].shape[1]
        size, rest = divmod(n, self.heads)
        if rest:
            raise ValueError(
                f"{matrices[0].name} has {n} columns, not a multiple of {self.heads} heads"
            )
        return [
            part_of(matrices[0], f"head {h}", columns=[(h * size, (h + 1) * size)])
            for h in range(self.heads)
        ]


def _outputs_of(matrix: Matrix) -> Port:
    """All rows, whatever channels of a larger layer they are."""
    m = matrix.shape[0]
    return Port(matrix, matrix.name, "U", 0, m, channels=m)


def _with(label: str, word: str) -> str:
    """A label with a word in its bracket, ``in_proj_weight[v, by head]``."""
    return f"{label[:-1]}, {word}]" if label.endswith("]") else f"{label}[{word}]"


def _by_head(
    ends: tuple[str, str], firsts: list[Port], seconds: list[Port], reason: str
) -> Pair | Rejected:
    """A pair that meets in every head; with grouped queries a head of the fewer serves several."""
    count = max(len(firsts), len(seconds))
    if count % len(firsts) or count % len(seconds):
        fewer = min(len(firsts), len(seconds))
        return Rejected(*ends, f"{count} heads cannot share {fewer}")
    meetings: list[Meeting] = []
    for head in range(count):
        first, second = (side[head * len(side) // count] for side in (firsts, seconds))
        answer = connect(first, second, reason)
        if not isinstance(answer, Pair):
            return answer or Rejected(*ends, f"{first.label} and {second.label} share no channel")
        meetings.extend(answer.meetings)
    return Pair(*ends, tuple(meetings), reason)


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
