"""Layers that feed each other, as a small program that is run once over streams of ports.

A `Stream` is what is between two layers: the ports of those that wrote it. A step of the program
takes the stream that arrives and answers with the one that leaves; on the way it pairs, in the
`Record`, what arrives with what reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from spectral_monitor.model.similar_rows import without_indices
from spectral_monitor.model.submatrices import part_of
from spectral_monitor.pairs.pairs import Found, Pair, Port, Rejected, connect, exit_port

__all__ = ["Record", "Step", "Stream", "widths"]


@dataclass(frozen=True, slots=True)
class Stream:
    """What is between two layers."""

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
        self._found: Found = "guessed"
        self._family = ""

    @contextlib.contextmanager
    def known(self, family: str) -> Iterator[None]:
        """Inside, pairs are those of a known family of models."""
        before = self._found, self._family, self.memory
        self._found, self._family, self.memory = "preset", family, None
        try:
            yield
        finally:
            self._found, self._family, self.memory = before

    def reject(self, first: str, second: str, reason: str) -> None:
        """Keep why two neighbours, or all of one, are no pair."""
        self.rejected.append(Rejected(first, second, reason))

    def keep(self, answers: Iterable[Pair | Rejected | None]) -> None:
        """Keep pairs and reasons; of many reasons of one kind the first, with their number."""
        reasons: dict[object, list[Rejected]] = {}
        for answer in answers:
            if isinstance(answer, Pair):
                if answer.key not in self.pairs:
                    self.pairs[answer.key] = self._named(answer)
            elif answer is not None:
                kind = answer.kind or answer
                reasons.setdefault(kind, []).append(answer)
        self.rejected += [_with_others(alike) for alike in reasons.values()]

    def fold(self, start: int) -> None:
        """Of the reasons since the ``start``-th that differ in indices alone, keep the first.

        Branches side by side, such as experts, are rejected one by one for one reason.
        """
        alike: dict[object, list[Rejected]] = {}
        for row in self.rejected[start:]:
            kind = tuple(map(without_indices, (row.first, row.second, row.reason)))
            alike.setdefault(kind, []).append(row)
        self.rejected[start:] = [_with_others(rows) for rows in alike.values()]

    def _named(self, pair: Pair) -> Pair:
        if pair.found == self._found:
            return pair
        return replace(pair, found=self._found, reason=f"{pair.reason}, as in {self._family}")

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
        if self._found == "preset":
            reason = f"{reason}, as in {self._family}"
        label = before.leading.get(out)
        answers = [
            connect(
                out if label is None else _leading(out, label, into.channels),
                into, reason, self._found,
            )
            for into in entries
        ]  # fmt: skip
        other = before.turned.get(out)
        if other is not None and not any(isinstance(answer, Pair) for answer in answers):
            turned = [connect(other, into, reason, self._found) for into in entries]
            if any(isinstance(answer, Pair) for answer in turned):
                return turned
        return answers


def _with_others(alike: Sequence[Rejected]) -> Rejected:
    """The first of several, with their number."""
    first = alike[0]
    if len(alike) == 1:
        return first
    return replace(first, reason=f"{first.reason} (and {len(alike) - 1} more like these)")


def _one_of_each(stream: Stream) -> list[Port]:
    """A port of each width."""
    return list({port.channels: port for port in reversed(stream.ports)}.values())[::-1]


def _leading(out: Port, label: str, count: int) -> Port:
    """The first rows of a matrix."""
    return exit_port(part_of(out.matrix, label, rows=[(0, min(count, len(out)))]))


class _Ends(Record):
    """Notes what reads the stream that a step is started with."""

    def __init__(self) -> None:
        super().__init__()
        self.start = Stream()
        self.entries: list[Port] = []

    def join(self, before: Stream, entries: Sequence[Port], reason: str) -> None:
        if before is self.start:
            self.entries += entries


def widths(step: Step) -> tuple[set[int], set[int]]:
    """How many channels a step takes and gives; more than one number where its parts differ."""
    ends = _Ends()
    after = step.run(ends, ends.start)
    return {port.channels for port in ends.entries}, {port.channels for port in after.ports}
