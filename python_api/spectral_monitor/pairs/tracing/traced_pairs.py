"""From the edges of a trace to the pairs of a monitor.

Queries meet keys head by head, values meet the output whole and by head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.submatrices import stacked
from spectral_monitor.pairs.ports import Meeting, Pair, Port, Rejected, with_word
from spectral_monitor.pairs.tracing.map import Edge, Indices, Trace
from spectral_monitor.pairs.tracing.placing import Placed, Places, PortMaker, ranges_of

_OWN_SIDE = "same weight: its own side"
_FED = "outputs of one are inputs of the other"


def traced_pairs(traced: Trace, matrices: Sequence[Matrix]) -> tuple[list[Pair], list[Rejected]]:
    """The pairs of the matrices under watch, and edges that are none with the reason.

    Args:
        traced: of the model whose weights the matrices are.
        matrices: those under watch.

    Raises:
        ValueError: the trace is of another model: it knows none of the matrices.
    """
    places = Places(traced, matrices)
    if len(places.unmatched) == len(matrices):
        name, reason = places.unmatched[0]
        raise ValueError(f"pairs: the trace is of another model; {name}: {reason}")
    work = _Matching(places)
    for edge in traced.edges:
        work.take(edge)
    unknown = [Rejected(name, "", reason) for name, reason in places.unmatched]
    return work.pairs(), [*unknown, *dict.fromkeys(work.rejected)]


class _Matching:
    def __init__(self, places: Places) -> None:
        self.rejected: list[Rejected] = []
        self._places = places
        self._ports = PortMaker()
        self._pairs: dict[tuple[str, str], Pair] = {}
        # Heads of an attention are edges of their own: by kind and parameters.
        self._together: dict[tuple[str, str, str], _AllHeads] = {}

    def take(self, edge: Edge) -> None:
        names = edge.first.parameter, edge.second.parameter
        # Factors of one decomposed weight meet in their product.
        if any(name in self._places.inner for name in names):
            return
        hidden = [name for name in names if not self._places.has(name)]
        if hidden:
            self.rejected.append(Rejected(*names, f"{hidden[0]} is not watched"))
            return
        meets = edge.kind in ("scores", "multiplied")
        firsts = self._places.of(edge.first, writes=True)
        seconds = self._places.of(edge.second, writes=meets)
        met = [pair for a in firsts for b in seconds if (pair := _both(a, b)) is not None]
        if edge.kind == "feeds":
            for a, b in met:
                self._keep(self._fed(a, b))
            return
        reasons = [_no_meeting(a, b) if meets else "" for a, b in met]
        self.rejected += [
            Rejected(a.matrix.name, b.matrix.name, reason)
            for (a, b), reason in zip(met, reasons, strict=True)
            if reason
        ]
        left = [pair for pair, reason in zip(met, reasons, strict=True) if not reason]
        if left:
            key = (edge.kind, *names)
            self._together.setdefault(key, _AllHeads(edge.kind, edge.head)).add(left)

    def pairs(self) -> list[Pair]:
        """All pairs; what meets by head comes with the layers around it."""
        for (kind, *_), together in self._together.items():
            make = _value_pairs if kind == "values" else _score_pairs
            for pair in make(together, self._ports):
                self._keep(pair)
        return list(self._pairs.values())

    def _fed(self, a: Placed, b: Placed) -> Pair | Rejected:
        if _is_own_side(a, b):
            return Rejected(a.matrix.name, b.matrix.name, _OWN_SIDE)
        a, b, cut = _once(a, b)
        first, second = self._ports.port(a, _half(a)), self._ports.port(b, taps=cut)
        return Pair.of(first, second, _FED, "traced")

    def _keep(self, answer: Pair | Rejected) -> None:
        if isinstance(answer, Pair):
            self._pairs.setdefault(answer.key, answer)
        else:
            self.rejected.append(answer)


def _is_own_side(a: Placed, b: Placed) -> bool:
    shared = a.matrix is b.matrix and a.end == b.end
    return shared and bool(np.intersect1d(a.indices, b.indices).size)


def _no_meeting(a: Placed, b: Placed) -> str:
    """Why two sides do not meet one by one, as queries and keys do; empty if they do."""
    if _is_own_side(a, b):
        return _OWN_SIDE
    if any(len(np.unique(placed.indices)) < len(placed.indices) for placed in (a, b)):
        return "an output meets several, as of a table of positions that scales"
    return ""


def _half(a: Placed) -> str:
    """The name of a half of a fused matrix, "gate" or "up"; empty where its name does not tell."""
    half, start = a.matrix.shape[0] // 2, int(a.indices[0])
    if "gate_up" not in a.matrix.parameter or a.end != "U" or start not in (0, half):
        return ""
    if not np.array_equal(a.indices, np.arange(start, start + half)):
        return ""
    return "up" if start else "gate"


def _both(a: Placed, b: Placed) -> tuple[Placed, Placed] | None:
    """The entries of an edge that two matrices share, in the order of the second."""
    of, mine, others = np.intersect1d(a.of, b.of, return_indices=True)
    if not len(of):
        return None
    order = np.argsort(b.indices[others], kind="stable")
    return a.at(mine[order]), b.at(others[order])


def _once(a: Placed, b: Placed) -> tuple[Placed, Placed, bool]:
    """Each output once, with the middle one of the inputs that it feeds: its centre tap.

    A channel of an image that is flattened feeds as many inputs as there are pixels.
    """
    outputs, counts = np.unique(a.indices, return_counts=True)
    if len(outputs) == len(a.indices):
        return a, b, False
    order = np.lexsort((b.indices, a.indices))
    starts = np.cumsum(counts) - counts
    chosen = order[starts + counts // 2]
    chosen = chosen[np.argsort(b.indices[chosen], kind="stable")]
    return a.at(chosen), b.at(chosen), True


_SCORES = "queries meet keys in each head"
_MULTIPLIED = "outputs of both are multiplied"
_VALUES = "values meet the output"


@dataclass(slots=True)
class _AllHeads:
    """All that met between two parameters, in all heads."""

    kind: str
    head: int | None
    """Outputs of one head of the values."""
    met: list[tuple[Placed, Placed]] = field(default_factory=list)

    def add(self, met: list[tuple[Placed, Placed]]) -> None:
        """Take the places of one more edge; those that are there already are left out."""
        names = {_name(pair) for pair in self.met}
        self.met += [pair for pair in met if _name(pair) not in names]

    def side(self, index: int) -> list[Placed]:
        """All places in the first or in the second parameter."""
        return [pair[index] for pair in self.met]


def _name(pair: tuple[Placed, Placed]) -> tuple[object, ...]:
    return tuple(x for p in pair for x in (p.matrix.name, p.end, p.indices.tobytes()))


def _score_pairs(together: _AllHeads, ports: PortMaker) -> Iterator[Pair | Rejected]:
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


def _value_pairs(together: _AllHeads, ports: PortMaker) -> Iterator[Pair | Rejected]:
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
        with_word(ends[0], "by head"), with_word(ends[1], "by head"), meetings,
        f"{_VALUES} in each head", "traced",
    )  # fmt: skip


def _whole(together: _AllHeads, ends: tuple[str, str], ports: PortMaker) -> Pair | Rejected:
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
        yield a.at(cut), b.at(cut)


def _sorted(a: Placed, b: Placed) -> tuple[Placed, Placed]:
    """In the order of the side of which less pieces are left."""
    orders = [np.argsort(x.indices, kind="stable") for x in (a, b)]
    pieces = [len(ranges_of(a.indices[o])) + len(ranges_of(b.indices[o])) for o in orders]
    order = orders[pieces[1] < pieces[0]]
    return a.at(order), b.at(order)


def _rows(placed: Placed) -> tuple[str, bytes]:
    return placed.matrix.name, np.sort(placed.indices).tobytes()


def _heads(placed: list[Placed]) -> dict[tuple[str, bytes], int]:
    """Rows or columns of a head -> its number, in the order in which they lie."""
    places = {_rows(p): (p.matrix.name, int(p.indices.min())) for p in placed}
    order = {name: i for i, name in enumerate(dict.fromkeys(p.matrix.name for p in placed))}
    ranked = sorted(places, key=lambda rows: (order[places[rows][0]], places[rows][1]))
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
