"""From the edges of a trace to the pairs of a monitor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.pairs.pairs import Pair, Rejected
from spectral_monitor.pairs.tracing.heads import Together, score_pairs, value_pairs
from spectral_monitor.pairs.tracing.map import Edge, Trace
from spectral_monitor.pairs.tracing.places import Placed, Places
from spectral_monitor.pairs.tracing.ports import Ports

__all__ = ["traced_pairs"]

_OWN_SIDE = "same weight: its own side"
_REASON = "outputs of one are inputs of the other"


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
        self._ports = Ports()
        self._pairs: dict[tuple[str, str], Pair] = {}
        # Heads of an attention are edges of their own: by kind and parameters.
        self._together: dict[tuple[str, str, str], Together] = {}

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
            self._together.setdefault(key, Together(edge.kind, edge.head)).add(left)

    def pairs(self) -> list[Pair]:
        """All pairs; what meets by head comes with the layers around it."""
        for (kind, *_), together in self._together.items():
            make = value_pairs if kind == "values" else score_pairs
            for pair in make(together, self._ports):
                self._keep(pair)
        return list(self._pairs.values())

    def _fed(self, a: Placed, b: Placed) -> Pair | Rejected:
        if _is_own_side(a, b):
            return Rejected(a.matrix.name, b.matrix.name, _OWN_SIDE)
        a, b, cut = _once(a, b)
        first, second = self._ports.port(a, _half(a)), self._ports.port(b, taps=cut)
        return Pair.of(first, second, _REASON, "traced")

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
    """What half of a fused matrix is called, where its name tells."""
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
    first, second = a.indices[mine], b.indices[others]
    order = np.argsort(second, kind="stable")
    return (
        Placed(a.matrix, a.end, first[order], of[order]),
        Placed(b.matrix, b.end, second[order], of[order]),
    )


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
    return (
        Placed(a.matrix, a.end, a.indices[chosen], a.of[chosen]),
        Placed(b.matrix, b.end, b.indices[chosen], b.of[chosen]),
        True,
    )
