"""Pairs of layers that feed each other, and which singular vectors of each meet.

Alignment (Eq. 3 of "Spectral dynamics of weights") compares the output directions of a layer,
its left singular vectors U, with the input directions of the next, the rows of V'^T. A `Port`
says which rows of U or columns of Vh take part, so that heads, gates, groups, halves of a
bidirectional layer and the centre tap of a kernel are all views of the SVDs of whole matrices.
Parts are not renormalised (as in the papers' code).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from python_api.matrices import Block, Matrix
from spectral_kernels.results import SVD

__all__ = ["Pair", "Port", "Rejected", "connect", "entry_port", "exit_port", "resolve_pairs"]


@dataclass(frozen=True, slots=True)
class Port:
    """One side of a matrix: rows ``start:stop`` of U, or columns ``start:stop:step`` of Vh."""

    matrix: str
    """Name of the matrix whose SVD is read."""
    label: str
    """Name with the part, ``attn.in_proj_weight[q, head 2]``."""
    shape: tuple[int, int]
    """Shape of the whole matrix, for messages."""
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
    def _is_whole(self) -> bool:
        return self.stop - self.start == self.shape[self.side == "V"] and self.step == 1

    def basis(self, svd: SVD) -> Tensor:
        """The singular vectors as columns, ``(length, r)``: a view."""
        side: Tensor = svd.U if self.side == "U" else svd.Vh.mT
        return side if self._is_whole else side[self.start : self.stop : self.step]

    def rows(self, svd: SVD) -> Tensor:
        """The singular vectors as rows, ``(r, length)``: a view."""
        side: Tensor = svd.Vh if self.side == "V" else svd.U.mT
        return side if self._is_whole else side[:, self.start : self.stop : self.step]

    def narrowed(self, low: int, high: int) -> Port:
        """This port for channels ``low:high`` of the layer alone."""
        if low == self.first_channel and high == self.first_channel + len(self):
            return self
        start = self.start + (low - self.first_channel) * self.step
        what = "outputs" if self.side == "U" else "inputs"
        return replace(
            self,
            label=f"{self.label}[{what} {low}:{high}]",
            start=start,
            stop=start + (high - low - 1) * self.step + 1,
            first_channel=low,
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers under alignment: outputs of ``first`` meet inputs of ``second``."""

    first: Port
    second: Port
    reason: str

    @property
    def key(self) -> tuple[str, str]:
        """Names of the two sides, the key of ``SpectralFrame.alignment``."""
        return (self.first.label, self.second.label)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Two neighbours that are not a pair, and why."""

    first: str
    second: str
    reason: str


def exit_port(matrix: Matrix) -> Port:
    """Where the outputs of a matrix are: U; columns of a table; the content gate's rows."""
    m, n = matrix.shape
    source = matrix.source
    if source.is_table:
        return Port(matrix.name, matrix.name, matrix.shape, "V", 0, n, channels=n)
    for block in source.blocks:
        if block.label == source.output_block:
            return block_port(matrix, block)
    total = m if source.outputs is None else source.outputs
    return Port(
        matrix.name, matrix.name, matrix.shape, "U", 0, m,
        first_channel=source.first_output, channels=total,
    )  # fmt: skip


def entry_port(matrix: Matrix) -> Port:
    """Where the inputs of a matrix are: the columns of Vh, of a kernel those of its centre."""
    n = matrix.shape[1]
    source = matrix.source
    total = n // source.taps if source.inputs is None else source.inputs
    return Port(
        matrix.name, matrix.name, matrix.shape, "V", source.centre, n, source.taps,
        first_channel=source.first_input, channels=total,
    )  # fmt: skip


def block_port(matrix: Matrix, block: Block) -> Port:
    """Rows of U that belong to one block, such as a gate or the queries of a head."""
    return Port(
        matrix.name, f"{matrix.name}[{block.label}]", matrix.shape, "U", block.start, block.stop,
        channels=block.stop - block.start,
    )  # fmt: skip


def connect(first: Port, second: Port, reason: str) -> Pair | Rejected | None:
    """A pair over the channels that both ports share.

    Returns ``None`` where the layers fit but these two parts share no channel, as two groups
    of two convolutions may.
    """
    if first.channels != second.channels:
        return Rejected(first.label, second.label, _mismatch(first, second))
    low = max(first.first_channel, second.first_channel)
    high = min(first.first_channel + len(first), second.first_channel + len(second))
    if high <= low:
        return None
    return Pair(first.narrowed(low, high), second.narrowed(low, high), reason)


def _mismatch(first: Port, second: Port) -> str:
    return (
        f"{first.label} of shape {first.shape} gives {first.channels} outputs, "
        f"{second.label} of shape {second.shape} takes {second.channels} inputs"
    )


def resolve_pairs(
    given: Sequence[tuple[str, str]], found: Sequence[Pair], matrices: Sequence[Matrix]
) -> list[Pair]:
    """Pairs for the names a user wrote.

    A name is that of a matrix, of a parameter (then all its groups), or of a block. Where the
    layers are known neighbours, all the parts that meet are meant: ``("q.weight", "k.weight")``
    stands for every head.

    Raises:
        ValueError: an unknown name, or shapes that do not chain.
        TypeError: an entry that is not two names.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    for entry in given:
        if (
            isinstance(entry, str)
            or len(entry) != 2
            or not all(isinstance(name, str) for name in entry)
        ):
            raise TypeError(f"pairs: expected (name, name of the next layer), got {entry!r}")
        first, second = entry
        _check_known(first, matrices)
        _check_known(second, matrices)
        known = [p for p in found if _meant(first, p.first, matrices)
                 and _meant(second, p.second, matrices)]  # fmt: skip
        for pair in known or _build(first, second, matrices):
            pairs[pair.key] = pair
    return list(pairs.values())


def _all_names(matrix: Matrix) -> list[str]:
    blocks = [f"{matrix.name}[{block.label}]" for block in matrix.source.blocks]
    return [matrix.name, matrix.parameter, *matrix.aliases, *blocks]


def _check_known(name: str, matrices: Iterable[Matrix]) -> None:
    known = list(dict.fromkeys(known for matrix in matrices for known in _all_names(matrix)))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:8]
        raise ValueError(
            f"pairs: {name!r} is not a matrix under watch; expected a name such as "
            f"{', '.join(near)}"
        )


def _meant(name: str, port: Port, matrices: Iterable[Matrix]) -> bool:
    if name in (port.label, port.matrix):
        return True
    return any(
        name == matrix.parameter or name in matrix.aliases
        for matrix in matrices
        if matrix.name == port.matrix
    )


def _ports(name: str, matrices: Iterable[Matrix], *, outgoing: bool) -> list[Port]:
    ports = []
    for matrix in matrices:
        if name in (matrix.name, matrix.parameter, *matrix.aliases):
            ports.append(exit_port(matrix) if outgoing else entry_port(matrix))
        for block in matrix.source.blocks:
            if name == f"{matrix.name}[{block.label}]":
                ports.append(block_port(matrix, block))
    return ports


def _build(first: str, second: str, matrices: Sequence[Matrix]) -> list[Pair]:
    rejected: list[str] = []
    pairs: list[Pair] = []
    for out in _ports(first, matrices, outgoing=True):
        for into in _ports(second, matrices, outgoing=False):
            answer = connect(out, into, "given")
            if isinstance(answer, Pair):
                pairs.append(answer)
            elif isinstance(answer, Rejected):
                rejected.append(answer.reason)
    if not pairs:
        why = rejected[0] if rejected else "the two share no channel"
        raise ValueError(f"pairs: ({first!r}, {second!r}) do not chain: {why}")
    return pairs
