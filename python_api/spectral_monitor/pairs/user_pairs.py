"""Pairs of layers by the names that a user wrote."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from spectral_monitor.model.matrix import Block, Matrix
from spectral_monitor.model.submatrices import Range, submatrix
from spectral_monitor.pairs.ports import (
    Pair,
    Port,
    Rejected,
    connect,
    entry_port,
    exit_port,
    gate_port,
)


def resolve_pairs(
    given: Sequence[tuple[str, str]], neighbours: Sequence[Pair], matrices: Sequence[Matrix]
) -> list[Pair]:
    """Pairs for the names a user wrote.

    A name is that of a matrix, of a parameter (then all its groups), of a block, or of a part.
    Known neighbours meet as they do in the model: ``("q.weight", "k.weight")`` head by head, and
    ``("q.weight[head 2]", "k.weight[head 2]")`` in one of them.

    Raises:
        ValueError: an unknown name, or shapes that do not chain.
        TypeError: an entry that is not two names.
    """
    names = _Names(neighbours, matrices)
    pairs: dict[tuple[str, str], Pair] = {}
    if isinstance(given, Mapping):
        raise TypeError(
            "pairs: got a dict; a saved trace is read by spectral_kernels.Trace.from_dict"
        )
    for entry in given if isinstance(given, Iterable) else [given]:
        if (
            not isinstance(entry, (list, tuple))
            or len(entry) != 2
            or not all(isinstance(name, str) for name in entry)
        ):
            raise TypeError(f"pairs: expected (name, name of the next layer), got {entry!r}")
        first, second = entry
        names.check(first)
        names.check(second)
        for pair in names.neighbours(first, second) or names.build(first, second):
            pairs[pair.key] = pair
    return list(pairs.values())


class _Names:
    """What the names of a model mean: matrices, and the sides of the pairs that were found."""

    def __init__(self, neighbours: Sequence[Pair], matrices: Sequence[Matrix]) -> None:
        self._neighbours, self._matrices = neighbours, matrices
        self._parts = {
            port.matrix.name: port.matrix
            for pair in neighbours
            for port in pair.ports
            if port.matrix.whole is not None
        }
        for matrix in matrices:
            if matrix.source.output_block is None:
                for label, rows in _labelled(matrix.source.blocks).items():
                    part = submatrix(matrix, label, rows=rows)
                    self._parts[part.name] = part

    def check(self, name: str) -> None:
        """Raise a ValueError for a name that means nothing."""
        all_names = list(
            dict.fromkeys(
                [
                    *(own for matrix in self._matrices for own in _all_names(matrix)),
                    *(label for pair in self._neighbours for label in pair.key),
                    *self._parts,
                ]
            )
        )
        if name not in all_names:
            near = difflib.get_close_matches(name, all_names, n=3, cutoff=0.4) or all_names[:8]
            raise ValueError(
                f"pairs: {name!r} is not a matrix under watch; expected a name such as "
                f"{', '.join(near)}"
            )

    def neighbours(self, first: str, second: str) -> list[Pair]:
        """Pairs that were found, or one of the meetings of one; else those of these parameters."""
        exact = [pair for pair in self._neighbours if pair.key == (first, second)]
        if exact:
            return exact
        for pair in self._neighbours:
            out, into = (
                {port.label: port for port in side} for side in zip(*pair.meetings, strict=True)
            )
            if first in out and second in into:
                return [Pair.of(out[first], into[second], pair.reason, "given")]
        return [
            pair
            for pair in self._neighbours
            if self._means(first, pair.first, [port for port, _ in pair.meetings])
            and self._means(second, pair.second, [port for _, port in pair.meetings])
        ]

    def _means(self, name: str, label: str, ports: Iterable[Port]) -> bool:
        """Whether a name stands for a side of a pair: that of its matrix or parameter."""
        return name == label or all(
            name in (port.matrix.whole, port.matrix.name, port.matrix.parameter)
            or name in port.matrix.aliases
            for port in ports
        )

    def build(self, first: str, second: str) -> list[Pair]:
        """Pairs of what these names mean, over the channels that both share."""
        rejected: list[str] = []
        pairs: list[Pair] = []
        for out in self._ports(first, outgoing=True):
            for into in self._ports(second, outgoing=False):
                answer = connect(out, into, "given", "given")
                if isinstance(answer, Pair):
                    pairs.append(answer)
                elif isinstance(answer, Rejected):
                    rejected.append(answer.reason)
        if not pairs:
            why = rejected[0] if rejected else "the two share no channel"
            several = [n for n in (first, second) if not self._ports(n, outgoing=True)]
            if several:
                why = f"{several[0]!r} stands for several heads; name one of them, or the matrix"
            raise ValueError(f"pairs: ({first!r}, {second!r}) do not chain: {why}")
        return pairs

    def _ports(self, name: str, *, outgoing: bool) -> list[Port]:
        port = exit_port if outgoing else entry_port
        ports = []
        for matrix in self._matrices:
            if name in (matrix.name, matrix.parameter, *matrix.aliases):
                ports.append(port(matrix))
            for block in matrix.source.blocks:
                if name == f"{matrix.name}[{block.label}]" and name not in self._parts:
                    ports.append(gate_port(matrix, block))
        if not ports and name in self._parts:
            ports.append(port(self._parts[name]))
        return ports


def _labelled(blocks: Iterable[Block]) -> dict[str, list[Range]]:
    """Rows by label, ``q, head 2``, and those of all heads by role, ``q``."""
    rows: dict[str, list[Range]] = {}
    for block in blocks:
        for label in dict.fromkeys((block.label, block.label.partition(",")[0])):
            rows.setdefault(label, []).append((block.start, block.stop))
    return rows


def _all_names(matrix: Matrix) -> list[str]:
    blocks = [f"{matrix.name}[{block.label}]" for block in matrix.source.blocks]
    return [matrix.name, matrix.parameter, *matrix.aliases, *blocks]
