"""The steps of a flow: layers, tables, attentions, and how they are put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spectral_monitor.model.registry import Matrix
from spectral_monitor.model.submatrices import part_of
from spectral_monitor.pairs.attention.attention_pairs import Attention
from spectral_monitor.pairs.attention.latent_attention import LatentAttention
from spectral_monitor.pairs.flow.flow import Record, Step, Stream
from spectral_monitor.pairs.pairs import Pair, Port, Rejected, connect, entry_port, exit_port

__all__ = ["Attend", "Chain", "Ended", "Known", "Layer", "Lost", "Meet", "Remember", "Same",
           "SideBySide", "Table"]  # fmt: skip

Adapters = tuple[tuple[Matrix, Matrix], ...]
"""(down, up) of each, as A and B of LoRA."""


@dataclass(frozen=True, slots=True)
class Same:
    """Nothing."""

    def run(self, record: Record, before: Stream) -> Stream:
        """As it arrives."""
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
        return entry_port(part_of(matrix, "one neighbour", columns=[(0, size)]))


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
        """Nothing leaves."""
        self.part.run(record, before)
        return Stream()


@dataclass(frozen=True, slots=True)
class Chain:
    """One part after the other."""

    parts: tuple[Step, ...]

    def run(self, record: Record, before: Stream) -> Stream:
        """What leaves the last."""
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
        """Nothing leaves: what comes next starts anew."""
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
        """Nothing leaves."""
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
class Known:
    """A part that is known from a family of models."""

    part: Step
    family: str

    def run(self, record: Record, before: Stream) -> Stream:
        """As the part does."""
        with record.known(self.family):
            return self.part.run(record, before)


def _factors(adapters: Adapters) -> Iterator[Pair | Rejected | None]:
    for down, up in adapters:
        yield connect(exit_port(down), entry_port(up), "the two factors of an adapter")
