"""Attention layers: which weights are queries, keys, values and output, and how heads meet.

Queries meet keys inside a head, in x W_q^T W_k x^T: U of each head's rows of W_q meets U of those
of W_k, and the pair has the mean over the heads. Values meet the output projection, U against V',
twice: the rows of all heads as one matrix with all of W_o, and head by head with the columns that
each head writes to. Each of these blocks has an SVD of its own. (So in the code of Yunis et al. for
queries and keys, and for values and output whole; the text of their appendix D.4 has it by head.)
The layer before feeds a fused weight as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from spectral_monitor.model.fused_layouts import fused_attention_blocks
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.submatrices import Range, stacked, submatrix
from spectral_monitor.pairs.ports import (
    Meeting,
    Pair,
    Port,
    Rejected,
    connect,
    entry_port,
    exit_port,
    with_word,
)

_UNKNOWN = (
    "{} is queries, keys and values in one, and its shape does not tell which rows belong to which "
    "head: sk.trace(model, inputs) sees it, config= tells it for known models, and so does a rule "
    "with blocks (MatrixRegistry)"
)


@dataclass(slots=True)
class Attention:
    """The weights of one attention layer by role; a role may be one matrix per head."""

    roles: dict[str, list[Matrix]] = field(default_factory=dict)
    """"q", "k", "v", "o", or "qkv" in place of the first three."""
    heads: int = 1
    kv_heads: int | None = None
    layout: str | None = None
    """Of a fused weight without blocks, see `model.fused_layouts`; ``None``: unknown."""

    def entries(self, roles: Sequence[str] = ("qkv", "q", "k", "v")) -> list[Port]:
        """Ports where the layer's input arrives."""
        return [entry_port(matrix) for role in roles for matrix in self.roles.get(role, [])]

    @property
    def is_laid_out(self) -> bool:
        """Whether it is known which rows are queries, keys and values."""
        fused = self.roles.get("qkv")
        return not fused or bool(fused[0].source.blocks) or self.layout is not None

    def queries(self) -> list[Port]:
        """Ports where the input of the queries arrives."""
        if self.roles.get("qkv"):
            return [entry_port(self._rows_of("q"))]
        return self.entries("q")

    def memory(self) -> list[Port]:
        """Ports where the input of the keys and values arrives."""
        if self.roles.get("qkv"):
            return [entry_port(self._rows_of(role)) for role in "kv"]
        return self.entries("kv")

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
            yield Rejected(names[0], "", str(error))
            return
        if queries and keys:
            yield by_head(
                (self._label("q"), self._label("k")),
                [outputs_of(matrix) for matrix in queries],
                [outputs_of(matrix) for matrix in keys],
                "queries meet keys in each head",
            )
        if values and outputs:
            yield from self._values_meet_output(values, outputs)

    def pairs_with(self, role: str, other: Matrix) -> Iterator[Pair | Rejected]:
        """The same where another matrix stands beside that of a role, as an adapter does."""
        partners = {"q": "k", "k": "q", "v": "o", "o": "v"}
        if role == "qkv":
            roles = {"qkv": [other], "o": self.roles.get("o", [])}
        elif role in partners and self.roles.get(partners[role]):
            roles = {role: [other], partners[role]: self.roles[partners[role]]}
        else:
            return
        yield from replace(self, roles=roles).pairs()

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
            yield by_head(
                (with_word(ends[0], "by head"), with_word(ends[1], "by head")),
                [outputs_of(matrix) for matrix in values],
                [entry_port(matrix) for matrix in outputs],
                "values meet the output in each head",
            )

    def _whole(
        self, ends: tuple[str, str], values: list[Matrix], outputs: list[Matrix]
    ) -> Pair | Rejected:
        try:
            first = outputs_of(self._all_of("v", values))
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
            return self._rows_of(role)
        matrices = self.roles[role]
        if len(matrices) == 1:
            return matrices[0]
        return stacked(heads, self._label(role), columns=role == "o")

    def _rows_of(self, role: str) -> Matrix:
        """The rows of a fused weight that belong to a role."""
        return submatrix(self.roles["qkv"][0], role, rows=[rows for _, rows in self._blocks(role)])

    def _blocks(self, role: str) -> list[tuple[str, Range]]:
        """Label and rows of every head of a role, in a fused weight."""
        fused = self.roles["qkv"][0]
        blocks = fused.source.blocks
        if not blocks:
            if self.layout is None:
                raise ValueError(_UNKNOWN.format(fused.name))
            blocks = fused_attention_blocks(
                fused.shape[0], self.heads, kv_heads=self.kv_heads, layout=self.layout
            )
        return [(b.label, (b.start, b.stop)) for b in blocks if b.label.startswith(f"{role}, ")]

    def _heads_of(self, role: str) -> list[Matrix]:
        """A matrix for each head."""
        if self.roles.get("qkv"):
            fused = self.roles["qkv"][0]
            return [submatrix(fused, label, rows=[rows]) for label, rows in self._blocks(role)]
        matrices = self.roles.get(role, [])
        if len(matrices) != 1 or self.heads == 1:
            return matrices
        size = self._head_size()
        count, odd = divmod(matrices[0].shape[0], size)
        if odd or not count:
            raise ValueError(
                f"{matrices[0].name} has {matrices[0].shape[0]} rows, which do not divide into "
                f"heads of {size}"
            )
        return [
            submatrix(matrices[0], f"head {h}", rows=[(h * size, (h + 1) * size)])
            for h in range(count)
        ]

    def _head_size(self) -> int:
        """Rows of one query head, or where there are none, columns of the output's."""
        queries, outputs = self.roles.get("q"), self.roles.get("o")
        matrices = queries or outputs
        if not matrices:
            raise ValueError("neither queries nor an output tell the size of a head")
        size, rest = divmod(matrices[0].shape[0 if queries else 1], self.heads)
        if rest or not size:
            raise ValueError(
                f"{matrices[0].name} has {matrices[0].shape[0 if queries else 1]} "
                f"{'rows' if queries else 'columns'}, not a multiple of {self.heads} heads"
            )
        return size

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
            submatrix(matrices[0], f"head {h}", columns=[(h * size, (h + 1) * size)])
            for h in range(self.heads)
        ]


def outputs_of(matrix: Matrix) -> Port:
    """A port of all rows, whatever channels of a larger layer these are."""
    m = matrix.shape[0]
    return Port(matrix, matrix.name, "U", 0, m, channels=m)


def by_head(
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
