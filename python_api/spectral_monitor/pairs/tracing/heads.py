"""Pairs of attentions: queries with keys head by head, values with the output whole and by head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from spectral_monitor.model.submatrices import stacked
from spectral_monitor.pairs.pairs import Meeting, Pair, Port, Rejected
from spectral_monitor.pairs.tracing.map import Indices
from spectral_monitor.pairs.tracing.places import Placed
from spectral_monitor.pairs.tracing.ports import Ports, ranges_of

__all__ = ["Together", "score_pairs", "value_pairs"]

_SCORES = "queries meet keys in each head"
_MULTIPLIED = "outputs of both are multiplied"
_VALUES = "values meet the output"


@dataclass(slots=True)
class Together:
    """What met between two parameters in all heads."""

    kind: str
    head: int | None
    """Outputs of one head of the values."""
    met: list[tuple[Placed, Placed]] = field(default_factory=list)

    def add(self, met: list[tuple[Placed, Placed]]) -> None:
        """One more edge; what is known already is left out."""
        known = {_name(pair) for pair in self.met}
        self.met += [pair for pair in met if _name(pair) not in known]

    def side(self, index: int) -> list[Placed]:
        """All of the first or of the second parameter."""
        return [pair[index] for pair in self.met]


def _name(pair: tuple[Placed, Placed]) -> tuple[object, ...]:
    return tuple(x for p in pair for x in (p.matrix.name, p.end, p.indices.tobytes()))


def score_pairs(together: Together, ports: Ports) -> Iterator[Pair | Rejected]:
    """One pair of queries and keys, with a meeting for every head."""
    roles = ("q", "k") if together.kind == "scores" else ("", "")
    ends = [_label(together.side(i), roles[i]) for i in (0, 1)]
    heads = [_heads(together.side(i)) for i in (0, 1)]
    meetings: list[Meeting] = []
    for a, b in together.met:
        a, b = _sorted(a, b)
        labels = [
            _head_label(role, end, head[_rows(placed)], placed) if together.kind == "scores" else ""
            for role, end, head, placed in zip(roles, ends, heads, (a, b), strict=True)
        ]
        meetings.append((ports.port(a, labels[0]), ports.port(b, labels[1])))
    if together.kind != "scores" and len(meetings) == 1:
        yield Pair.of(*meetings[0], _MULTIPLIED, "traced")
        return
    reason = _SCORES if together.kind == "scores" else _MULTIPLIED
    yield Pair(ends[0], ends[1], tuple(meetings), reason, "traced")


def value_pairs(together: Together, ports: Ports) -> Iterator[Pair | Rejected]:
    """Values with the output: whole where each is read once, and head by head."""
    ends = _label(together.side(0), "v"), _label(together.side(1), "")
    yield _whole(together, ends, ports)
    chunks = [
        chunk for a, b in together.met for chunk in _chunks(a, b, together.head or len(a.indices))
    ]
    if len(chunks) < 2:
        return
    heads = [_heads([chunk[i] for chunk in chunks]) for i in (0, 1)]
    meetings = tuple(
        (
            ports.port(a, _head_label("v", ends[0], heads[0][_rows(a)], a)),
            ports.port(b, _head_label("", ends[1], heads[1][_rows(b)], b)),
        )
        for a, b in chunks
    )
    yield Pair(
        _with(ends[0], "by head"), _with(ends[1], "by head"), meetings,
        f"{_VALUES} in each head", "traced",
    )  # fmt: skip


def _whole(together: Together, ends: tuple[str, str], ports: Ports) -> Pair | Rejected:
    rows = {(a.matrix.name, row) for a in together.side(0) for row in a.indices.tolist()}
    if len(rows) < sum(len(a.indices) for a in together.side(0)):
        return Rejected(
            *ends,
            f"heads of the output share {len(rows)} rows of the values: whole, the two do not "
            "chain; they are paired by head",
        )
    if len(together.met) == 1:
        a, b = together.met[0]
        first, second = ports.port(a, "v"), ports.port(b)
    else:
        try:
            first, second = (_side_by_side(together.side(i), ends[i]) for i in (0, 1))
        except ValueError as error:
            return Rejected(*ends, str(error))
    return Pair(ends[0], ends[1], ((first, second),), _VALUES, "traced")


def _side_by_side(placed: list[Placed], name: str) -> Port:
    """Matrices of one parameter, such as one for each head, as one."""
    end = placed[0].end
    if any(len(p.indices) != p.matrix.shape[end == "V"] for p in placed):
        raise ValueError(f"{name}: parts of several matrices are not one")
    whole = stacked([p.matrix for p in placed], name, columns=end == "V")
    length = whole.shape[end == "V"]
    return Port(whole, name, end, 0, length, channels=length)


def _chunks(a: Placed, b: Placed, size: int) -> Iterator[tuple[Placed, Placed]]:
    """An edge head by head: the output reads so many columns of each."""
    for start in range(0, len(b.indices), size):
        cut = slice(start, start + size)
        yield (
            Placed(a.matrix, a.end, a.indices[cut], a.of[cut]),
            Placed(b.matrix, b.end, b.indices[cut], b.of[cut]),
        )


def _sorted(a: Placed, b: Placed) -> tuple[Placed, Placed]:
    """In the order of the side of which less pieces are left."""
    orders = [np.argsort(x.indices, kind="stable") for x in (a, b)]
    pieces = [len(ranges_of(a.indices[o])) + len(ranges_of(b.indices[o])) for o in orders]
    order = orders[pieces[1] < pieces[0]]
    return (
        Placed(a.matrix, a.end, a.indices[order], a.of[order]),
        Placed(b.matrix, b.end, b.indices[order], b.of[order]),
    )


def _rows(placed: Placed) -> tuple[str, bytes]:
    return placed.matrix.name, np.sort(placed.indices).tobytes()


def _heads(placed: list[Placed]) -> dict[tuple[str, bytes], int]:
    """Rows or columns of a head -> its number, in the order in which they lie."""
    known = {_rows(p): (p.matrix.name, int(p.indices.min())) for p in placed}
    order = {name: i for i, name in enumerate(dict.fromkeys(p.matrix.name for p in placed))}
    ranked = sorted(known, key=lambda rows: (order[known[rows][0]], known[rows][1]))
    return {rows: head for head, rows in enumerate(ranked)}


def _label(placed: list[Placed], role: str) -> str:
    """Name of the matrix, or of the parameter of several; with the role where it has others."""
    matrices = {p.matrix.name: p.matrix for p in placed}
    first = placed[0].matrix
    if len(matrices) > 1:
        return first.parameter
    indices = np.unique(np.concatenate([p.indices for p in placed]))
    if len(indices) == first.shape[placed[0].end == "V"]:
        return first.name
    side = "outputs" if placed[0].end == "U" else "inputs"
    return f"{first.name}[{role or _range(side, indices)}]"


def _range(side: str, indices: Indices) -> str:
    return f"{side} {', '.join(f'{start}:{stop}' for start, stop in ranges_of(indices)[:3])}"


def _head_label(role: str, end: str, head: int, placed: Placed) -> str:
    if len(placed.indices) == placed.matrix.shape[placed.end == "V"]:
        return ""
    if role and end.endswith(f"[{role}]"):
        return f"{role}, head {head}"
    return f"head {head}"


def _with(label: str, word: str) -> str:
    """A label with a word in its bracket, ``in_proj_weight[v, by head]``."""
    return f"{label[:-1]}, {word}]" if label.endswith("]") else f"{label}[{word}]"
