"""Pairs of layers that feed each other, and which singular vectors of each meet.

Alignment (Eq. 3 of "Spectral dynamics of weights") compares the output directions of a layer,
its left singular vectors U, with the input directions of the next, the rows of V'^T. A `Port` says
whose vectors these are, those of a matrix or of a part of it (`model.submatrices`), and which of
their entries take part: the gate of a recurrent layer and the centre tap of a kernel are cut out of
the vectors and not renormalised, as in the papers' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from spectral_monitor.model.matrix import Block, Matrix
from spectral_monitor.model.submatrices import submatrix
from torch import Tensor

from spectral_kernels.entry.results import SVD

Origin = Literal["traced", "preset", "guessed", "given"]
"""How a pair was found: in a forward pass, by a known model's layout, from names and order, or by
the user."""


@dataclass(frozen=True, slots=True)
class Port:
    """One side of a matrix: rows ``start:stop`` of U, or columns ``start:stop:step`` of Vh."""

    matrix: Matrix
    """The matrix, or part of one, whose SVD is read."""
    label: str
    """Name with what takes part, ``lstm.weight_ih_l0[gate g]``."""
    side: Literal["U", "V"]
    start: int
    stop: int
    step: int = 1
    first_channel: int = 0
    """Index of the first channel among those of the whole layer."""
    channels: int = 0
    """Channels of the whole layer, the number that must agree between two layers."""

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))

    @property
    def side_length(self) -> int:
        """Entries of the singular vectors, of which some take part."""
        return self.matrix.shape[self.side == "V"]

    @property
    def _is_whole(self) -> bool:
        return self.stop - self.start == self.side_length and self.step == 1

    def basis(self, svd: SVD) -> Tensor:
        """The singular vectors as columns, ``(length, r)``: a view."""
        side: Tensor = svd.U if self.side == "U" else svd.Vh.mT
        return side if self._is_whole else side[self.start : self.stop : self.step]

    def rows(self, svd: SVD) -> Tensor:
        """The singular vectors as rows, ``(r, length)``: a view."""
        side: Tensor = svd.Vh if self.side == "V" else svd.U.mT
        return side if self._is_whole else side[:, self.start : self.stop : self.step]

    def narrowed(self, low: int, high: int) -> Port:
        """This port for channels ``low:high`` of the layer alone.

        These rows or columns of the matrix, decomposed on their own: the next matrix of a
        bidirectional layer is halved before its SVD in the papers' code. A gate stays a cut of the
        vectors of all gates.
        """
        if low == self.first_channel and high == self.first_channel + len(self):
            return self
        what = "outputs" if self.side == "U" else "inputs"
        label = f"{what} {low}:{high}"
        start = self.start + (low - self.first_channel) * self.step
        stop = start + (high - low - 1) * self.step + 1
        if self.side == "U" and not self._is_whole:
            return replace(self, label=f"{self.label}[{label}]", start=start, stop=stop,
                           first_channel=low)  # fmt: skip
        # All taps of the channels, where `start` is the centre among those of the first one.
        first = (low - self.first_channel) * self.step
        cut = [(first, first + (high - low) * self.step)]
        part = submatrix(self.matrix, label, rows=cut if self.side == "U" else None,
                       columns=cut if self.side == "V" else None)  # fmt: skip
        length = part.shape[self.side == "V"]
        return replace(self, matrix=part, label=part.name, stop=length, first_channel=low)


Meeting = tuple[Port, Port]
"""Outputs of one matrix and inputs of another (queries and keys: outputs of both)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers under alignment: outputs of ``first`` meet inputs of ``second``.

    They may meet several times, once in every head, and then the diagonal is the mean over the
    meetings, as long as the shortest of them.
    """

    first: str
    """Label of the first side, such as ``attn.in_proj_weight[q]``."""
    second: str
    meetings: tuple[Meeting, ...]
    reason: str
    origin: Origin = "guessed"

    @property
    def key(self) -> tuple[str, str]:
        """The labels of the two sides, the key of ``SpectralFrame.alignment``."""
        return (self.first, self.second)

    @classmethod
    def of(cls, first: Port, second: Port, reason: str, origin: Origin = "guessed") -> Pair:
        """A pair of one meeting."""
        return cls(first.label, second.label, ((first, second),), reason, origin)

    @property
    def ports(self) -> Iterator[Port]:
        """The ports of all meetings."""
        return (port for meeting in self.meetings for port in meeting)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Two neighbours that are not a pair, and why."""

    first: str
    second: str
    reason: str
    kind: object = field(default=None, repr=False, compare=False)
    """What it has in common with others that are rejected for the same reason."""


def exit_port(matrix: Matrix) -> Port:
    """Where the outputs of a matrix are: U; columns of a table; the content gate's rows."""
    m, n = matrix.shape
    source = matrix.source
    if source.is_table:
        return Port(matrix, matrix.name, "V", 0, n, channels=n)
    for block in source.blocks:
        if block.label == source.output_block:
            return gate_port(matrix, block)
    total = m if source.outputs is None else source.outputs
    return Port(matrix, matrix.name, "U", 0, m, first_channel=source.first_output, channels=total)


def entry_port(matrix: Matrix) -> Port:
    """Where the inputs of a matrix are: the columns of Vh, of a kernel those of its centre."""
    n = matrix.shape[1]
    source = matrix.source
    total = n // source.taps if source.inputs is None else source.inputs
    return Port(
        matrix, matrix.name, "V", source.centre, n, source.taps,
        first_channel=source.first_input, channels=total,
    )  # fmt: skip


def gate_port(matrix: Matrix, block: Block) -> Port:
    """Rows of the whole matrix's U that belong to one gate."""
    return Port(
        matrix, f"{matrix.name}[{block.label}]", "U", block.start, block.stop,
        channels=block.stop - block.start,
    )  # fmt: skip


def submatrices_of(pairs: Iterable[Pair], watched: Iterable[Matrix]) -> list[Matrix]:
    """The parts that pairs need beside the matrices under watch, each once."""
    names = {matrix.name for matrix in watched}
    parts: dict[str, Matrix] = {}
    for pair in pairs:
        for port in pair.ports:
            if port.matrix.name not in names:
                parts.setdefault(port.matrix.name, port.matrix)
    return list(parts.values())


def connect(
    first: Port, second: Port, reason: str, origin: Origin = "guessed"
) -> Pair | Rejected | None:
    """A pair over the channels that both ports share.

    Returns ``None`` where the layers fit but these two parts share no channel, as two groups
    of two convolutions may.
    """
    if first.channels != second.channels:
        sizes = first.channels, second.channels
        return Rejected(first.label, second.label, _mismatch(first, second), sizes)
    if _is_same_place(first, second):
        return Rejected(first.label, second.label, "same weight: a layer is no neighbour of itself",
                        "same weight")  # fmt: skip
    low = max(first.first_channel, second.first_channel)
    high = min(first.first_channel + len(first), second.first_channel + len(second))
    if high <= low:
        return None
    return Pair.of(first.narrowed(low, high), second.narrowed(low, high), reason, origin)


def with_word(label: str, word: str) -> str:
    """A label with a word in its bracket, ``in_proj_weight[v, by head]``."""
    return f"{label[:-1]}, {word}]" if label.endswith("]") else f"{label}[{word}]"


def _is_same_place(first: Port, second: Port) -> bool:
    """Whether the two are the same vectors, wholly or in part, as of tied weights."""
    if first.side != second.side:
        return False
    if first.matrix.name == second.matrix.name:
        return max(first.start, second.start) < min(first.stop, second.stop)
    return second.matrix.name == first.matrix.whole or first.matrix.name == second.matrix.whole


def _mismatch(first: Port, second: Port) -> str:
    return (
        f"{first.label} of shape {first.matrix.shape} gives {first.channels} outputs, "
        f"{second.label} of shape {second.matrix.shape} takes {second.channels} inputs"
    )
