"""Layers that feed each other, as a small program that is run once over streams of ports.

A `Stream` is what is between two layers: the ports of those that wrote it. A step of the program
(a layer, a table, an attention, or several put together) takes the stream that arrives and answers
with the one that leaves; on the way it pairs, in the `Record`, what arrives with what reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.similar_rows import without_indices
from spectral_monitor.model.submatrices import submatrix
from spectral_monitor.pairs.attention import Attention
from spectral_monitor.pairs.latent_attention import LatentAttention
from spectral_monitor.pairs.ports import (
    Origin,
    Pair,
    Port,
    Rejected,
    connect,
    entry_port,
    exit_port,
)


@dataclass(frozen=True, slots=True)
class Stream:
    """The outputs that are between two layers, as ports."""

    ports: tuple[Port, ...] = ()
    turned: Mapping[Port, Port] = field(default_factory=dict)
    """Of a port whose orientation is not known, the other one."""
    leading: Mapping[Port, str] = field(default_factory=dict)
    """Of ports of which the next reads only as many of the first rows as it has inputs, the name
    of these rows."""
    both_ways: bool = False
    """Whether the ports are those of the two directions of a recurrent layer."""
    lost: tuple[str, str] | None = None
    """(name, why) of what hides who wrote this, told where something reads it."""


class Step(Protocol):
    """A part of the program."""

    def run(self, record: Record, before: Stream) -> Stream:
        """The stream that leaves where this one arrives."""
        ...


class Record:
    """The pairs and the rejected neighbours of a program, as it runs."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.rejected: list[Rejected] = []
        self.memory: Stream | None = None
        """What cross attentions read."""
        self._origin: Origin = "guessed"
        self._family = ""

    @contextlib.contextmanager
    def within_family(self, family: str) -> Iterator[None]:
        """Inside, pairs are those of a known family of models."""
        before = self._origin, self._family, self.memory
        self._origin, self._family, self.memory = "preset", family, None
        try:
            yield
        finally:
            self._origin, self._family, self.memory = before

    def reject(self, first: str, second: str, reason: str) -> None:
        """Keep why two neighbours, or all of one, are no pair."""
        self.rejected.append(Rejected(first, second, reason))

    def keep(self, answers: Iterable[Pair | Rejected | None]) -> None:
        """Keep pairs and reasons; of many reasons of one kind the first, with their number."""
        rejected: list[Rejected] = []
        for answer in answers:
            if isinstance(answer, Rejected):
                rejected.append(answer)
            elif answer is not None and answer.key not in self.pairs:
                self.pairs[answer.key] = self._named(answer)
        self.rejected += _one_of_each_kind(rejected, lambda row: row.kind or row)

    def fold(self, start: int) -> None:
        """Of the reasons since the ``start``-th that differ in indices alone, keep the first.

        Branches side by side, such as experts, are rejected one by one for one reason.
        """

        def pattern(row: Rejected) -> Hashable:
            return tuple(map(without_indices, (row.first, row.second, row.reason)))

        self.rejected[start:] = _one_of_each_kind(self.rejected[start:], pattern)

    def _named(self, pair: Pair) -> Pair:
        if pair.origin == self._origin:
            return pair
        return replace(pair, origin=self._origin, reason=f"{pair.reason}, as in {self._family}")

    def join(self, before: Stream, entries: Sequence[Port], reason: str) -> None:
        """Pair everything that arrives with everything that reads it."""
        if before.lost is not None and entries:
            name, why = before.lost
            self.reject(name, entries[0].label, why)
        widths = {port.channels for port in before.ports if port not in before.turned}
        if len(widths) > 1 and not before.leading and entries:
            names = ", ".join(f"{p.label} ({p.channels} outputs)" for p in _one_of_each(before))
            self.reject(
                before.ports[0].label, entries[0].label,
                f"{names} have no common width, so they are not summed: how they meet "
                "cannot be known without sk.trace or pairs=",
            )  # fmt: skip
            return
        answers: list[Pair | Rejected | None] = []
        for out in before.ports:
            answers += self._meetings(before, out, entries, reason)
        self.keep(answers)

    def _meetings(
        self, before: Stream, out: Port, entries: Sequence[Port], reason: str
    ) -> list[Pair | Rejected | None]:
        if self._origin == "preset":
            reason = f"{reason}, as in {self._family}"
        label = before.leading.get(out)
        answers = [
            connect(
                out if label is None else _leading(out, label, into.channels),
                into, reason, self._origin,
            )
            for into in entries
        ]  # fmt: skip
        other = before.turned.get(out)
        if other is not None and not any(isinstance(answer, Pair) for answer in answers):
            turned = [connect(other, into, reason, self._origin) for into in entries]
            if any(isinstance(answer, Pair) for answer in turned):
                return turned
        return answers


def _one_of_each_kind(
    rows: Iterable[Rejected], kind: Callable[[Rejected], Hashable]
) -> list[Rejected]:
    """The first row of each kind, with the number of the others in its reason."""
    kinds: dict[Hashable, list[Rejected]] = {}
    for row in rows:
        kinds.setdefault(kind(row), []).append(row)
    return [
        replace(first, reason=f"{first.reason} (and {len(others)} more like these)")
        if others
        else first
        for first, *others in kinds.values()
    ]


def _one_of_each(stream: Stream) -> list[Port]:
    """A port of each width."""
    return list({port.channels: port for port in reversed(stream.ports)}.values())[::-1]


def _leading(out: Port, label: str, count: int) -> Port:
    """The first rows of a matrix."""
    return exit_port(submatrix(out.matrix, label, rows=[(0, min(count, len(out)))]))


Adapters = tuple[tuple[Matrix, Matrix], ...]
"""(down, up) of each, as A and B of LoRA."""


@dataclass(frozen=True, slots=True)
class Same:
    """A step without a layer."""

    def run(self, record: Record, before: Stream) -> Stream:
        """Hand on the stream that arrives."""
        return before


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices that read one input side by side, as those of one parameter do.

    Adapters read what the layer reads, and write where it writes.
    """

    matrices: tuple[Matrix, ...]
    exits: tuple[Port, ...] | None = None
    """Where the output leaves, if not at all rows."""
    adapters: Adapters = ()
    leading: str = ""
    """Name of the first rows, where the next reads only these."""
    neighbours: int = 1
    """How many places the input has side by side, of which the first stands for all."""

    def run(self, record: Record, before: Stream) -> Stream:
        """Read what arrives."""
        reads = [*self.matrices, *(down for down, _ in self.adapters)]
        record.join(before, [self._entry(matrix) for matrix in reads], "consecutive layers")
        record.keep(_factors(self.adapters))
        exits = self.exits or tuple(exit_port(matrix) for matrix in self.matrices)
        writes = (*exits, *(exit_port(up) for _, up in self.adapters))
        return Stream(writes, leading=dict.fromkeys(writes, self.leading) if self.leading else {})

    def _entry(self, matrix: Matrix) -> Port:
        if self.neighbours == 1:
            return entry_port(matrix)
        size = matrix.shape[1] // self.neighbours
        return entry_port(submatrix(matrix, "one neighbour", columns=[(0, size)]))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that are looked up: nothing arrives, and what leaves lies along the columns."""

    matrices: tuple[Matrix, ...]
    is_oriented: bool = True
    """Whether it is known that the rows are looked up; else it may be the columns."""

    def run(self, record: Record, before: Stream) -> Stream:
        """Start anew."""
        if before.ports:
            record.reject(before.ports[0].label, self.matrices[0].name,
                          "rows of a table are looked up: it reads no layer")  # fmt: skip
        ports = [_columns(matrix) for matrix in self.matrices]
        turned = {} if self.is_oriented else {
            port: _rows(matrix) for port, matrix in zip(ports, self.matrices, strict=True)
        }  # fmt: skip
        return Stream(tuple(ports), turned)


def _columns(matrix: Matrix) -> Port:
    n = matrix.shape[1]
    return Port(matrix, matrix.name, "V", 0, n, channels=n)


def _rows(matrix: Matrix) -> Port:
    m = matrix.shape[0]
    return Port(matrix, matrix.name, "U", 0, m, channels=m)


@dataclass(frozen=True, slots=True)
class Lost:
    """Something between layers of which it is not known what it does."""

    name: str
    why: str

    def run(self, record: Record, before: Stream) -> Stream:
        """Forget what arrives; what reads next is told why it has no neighbour."""
        return Stream(lost=(self.name, self.why))


@dataclass(frozen=True, slots=True)
class Ended:
    """A part that reads what arrives and writes nothing that is read, such as a router."""

    part: Step

    def run(self, record: Record, before: Stream) -> Stream:
        """Run the parts; no stream leaves."""
        self.part.run(record, before)
        return Stream()


@dataclass(frozen=True, slots=True)
class Chain:
    """Parts that run one after the other."""

    parts: tuple[Step, ...]

    def run(self, record: Record, before: Stream) -> Stream:
        """Hand each part the stream of the part before."""
        for part in self.parts:
            before = part.run(record, before)
        return before


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Parts that read the same; what leaves them is added, multiplied or chosen from."""

    branches: tuple[Step, ...]

    def run(self, record: Record, before: Stream) -> Stream:
        """What leaves all of them; a branch without a layer counts where it is `Same`."""
        start = len(record.rejected)
        streams = [(branch, branch.run(record, before)) for branch in self.branches]
        record.fold(start)
        after = [s for branch, s in streams if s is not before or isinstance(branch, Same)]
        if not after:
            return before
        return Stream(
            tuple(dict.fromkeys(port for stream in after for port in stream.ports)),
            {port: other for stream in after for port, other in stream.turned.items()},
            {port: label for stream in after for port, label in stream.leading.items()},
            any(stream.both_ways for stream in after),
            next((stream.lost for stream in after if stream.lost), None),
        )


@dataclass(frozen=True, slots=True)
class Remember:
    """A part whose output is what cross attentions read."""

    part: Step

    def run(self, record: Record, before: Stream) -> Stream:
        """Run the part and keep its stream; the next step starts anew."""
        record.memory = self.part.run(record, before)
        for port in record.memory.ports:
            record.reject(port.label, "", "the decoder reads its own tokens, and this by its cross "
                          "attentions alone")  # fmt: skip
        return Stream()


@dataclass(frozen=True, slots=True)
class Meet:
    """Two parts whose outputs meet, as those of queries and keys do."""

    first: Step
    second: Step

    def run(self, record: Record, before: Stream) -> Stream:
        """Run the parts; no stream leaves."""
        firsts, seconds = (part.run(record, before).ports for part in (self.first, self.second))
        record.keep(connect(a, b, "outputs that meet") for a in firsts for b in seconds)
        return Stream()


@dataclass(frozen=True, slots=True)
class Attend:
    """An attention; queries of a cross attention read what arrives, keys and values the memory."""

    attention: Attention | LatentAttention
    is_cross: bool = False
    adapters: Mapping[str, Adapters] = field(default_factory=dict)
    """By role."""

    def run(self, record: Record, before: Stream) -> Stream:
        """Read, pair what meets inside, and write by the output projection."""
        inside = self.attention
        if self.is_cross and isinstance(inside, Attention) and inside.is_laid_out:
            record.join(before, [*inside.queries(), *self._downs("q")], "consecutive layers")
            self._read_memory(record, [*inside.memory(), *self._downs("kv")])
        else:
            downs = self._downs(("qkv", "q", "k", "v", "q_a", "kv_a"))
            record.join(before, [*inside.entries(), *downs], "consecutive layers")
        record.keep(inside.pairs())
        for role, adapters in self.adapters.items():
            record.keep(_factors(adapters))
            for down, up in adapters:
                record.keep(inside.pairs_with(role, down if role == "o" else up))
        ups = [exit_port(up) for _, up in self.adapters.get("o", ())]
        return Stream((*inside.exits(), *ups))

    def _downs(self, roles: Sequence[str]) -> list[Port]:
        return [entry_port(down) for role in roles for down, _ in self.adapters.get(role, ())]

    def _read_memory(self, record: Record, entries: Sequence[Port]) -> None:
        if record.memory is not None:
            record.join(record.memory, entries, "keys and values read the encoder")
            return
        for entry in entries:
            record.reject(entry.label, "", "what keys and values of a cross attention read is not "
                          "known without sk.trace or pairs=")  # fmt: skip


@dataclass(frozen=True, slots=True)
class OfFamily:
    """A part that is known from a family of models."""

    part: Step
    family: str

    def run(self, record: Record, before: Stream) -> Stream:
        """Run the part; its pairs are those of the family."""
        with record.within_family(self.family):
            return self.part.run(record, before)


def _factors(adapters: Adapters) -> Iterator[Pair | Rejected | None]:
    for down, up in adapters:
        yield connect(exit_port(down), entry_port(up), "the two factors of an adapter")
