"""Parts of matrices that have singular vectors of their own.

Where two layers meet in some rows or columns only, as the heads of an attention do, it is the block
of these rows or columns that is decomposed, as in the papers' code. Rows cut out of the singular
vectors of the whole are something else: what is perfectly aligned in every head has an alignment of
1 by the blocks, and near chance by the cut. (Gates of recurrent layers and taps of kernels are cut
out of the whole's vectors, in the papers' code too: `spectral_monitor.pairs.ports.Port`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from spectral_monitor.model.matrix import Kept, Matrix, MatrixView
from torch import Tensor

from spectral_kernels.entry.results import Decomposed

Range = tuple[int, int]
"""Rows or columns ``start:stop``."""


def submatrix(
    whole: Matrix,
    label: str,
    *,
    rows: Sequence[Range] | None = None,
    columns: Sequence[Range] | None = None,
) -> Matrix:
    """Some rows and columns of a matrix, called ``whole.name[label]``.

    A view of the live parameter where the ranges follow each other without a gap, otherwise a copy
    at every read. Of a decomposed matrix it is the product of U's rows, Sigma and Vh's columns.

    Args:
        whole: a matrix, or a part.
        label: what the part is, such as ``head 2``.
        rows, columns: which, in order; all by default.

    Raises:
        ValueError: ranges that are empty or go beyond the matrix.
    """
    name = f"{whole.name}[{label}]"
    m, n = whole.shape
    across = tuple(_joined(rows, m, f"rows of {name}"))
    along = tuple(_joined(columns, n, f"columns of {name}"))
    get = _FactorCut(whole.get, m, n, across, along) if whole.is_decomposed else whole.get
    view = _Cut(whole.source.view, across, along)
    return replace(
        whole,
        name=name,
        shape=(_length(across), _length(along)),
        source=MatrixView(whole.kind, view, is_table=whole.source.is_table),
        get=get,
        whole=whole.whole or whole.name,
    )


def stacked(matrices: Sequence[Matrix], name: str, *, columns: bool = False) -> Matrix:
    """The matrices of one parameter, such as one for each head, as one: a copy at every read.

    Args:
        matrices: in order, at least one.
        name: of the result.
        columns: side by side rather than one above the other.

    Raises:
        ValueError: they are decomposed, of several parameters, or their shapes do not fit.
    """
    first, side = matrices[0], int(columns)
    others = {matrix.shape[1 - side] for matrix in matrices}
    parameters = {matrix.parameter for matrix in matrices}
    if len(others) > 1 or len(parameters) > 1 or any(m.is_decomposed for m in matrices):
        raise ValueError(
            f"{name}: expected matrices of one parameter with {('columns', 'rows')[side]} of one "
            f"length, not decomposed; got {', '.join(f'{m.name} {m.shape}' for m in matrices)}"
        )
    total, other = sum(matrix.shape[side] for matrix in matrices), first.shape[1 - side]
    joined = _Joined(tuple(matrix.source.view for matrix in matrices), side)
    return replace(
        first,
        name=name,
        shape=(other, total) if columns else (total, other),
        source=MatrixView(first.kind, joined),
        whole=first.parameter,
    )


# Classes rather than closures, which a copy of a monitor would share with the original.
@dataclass(frozen=True, slots=True)
class _Cut:
    """Rows and columns of what another view gives."""

    view: Callable[[Tensor], Tensor] | None
    rows: tuple[Range, ...]
    columns: tuple[Range, ...]

    def __call__(self, parameter: Tensor) -> Tensor:
        A = parameter if self.view is None else self.view(parameter)
        return _take(_take(A, self.rows, -2), self.columns, -1)


@dataclass(frozen=True, slots=True)
class _FactorCut:
    """Rows of U and columns of Vh of the factors of an (m, n) matrix."""

    get: Callable[[], Kept | None]
    m: int
    n: int
    rows: tuple[Range, ...]
    columns: tuple[Range, ...]

    def __call__(self) -> Kept | None:
        kept = self.get()
        if not isinstance(kept, Decomposed):
            return kept
        if (kept.U.shape[-2], kept.Vh.shape[-1]) != (self.m, self.n):
            return None
        return kept._replace(U=_take(kept.U, self.rows, -2), Vh=_take(kept.Vh, self.columns, -1))


@dataclass(frozen=True, slots=True)
class _Joined:
    """What several views of one parameter give, one above the other or side by side."""

    views: tuple[Callable[[Tensor], Tensor] | None, ...]
    dim: int

    def __call__(self, parameter: Tensor) -> Tensor:
        parts = [parameter if view is None else view(parameter) for view in self.views]
        return torch.cat(parts, dim=self.dim)


def _joined(ranges: Sequence[Range] | None, length: int, what: str) -> list[Range]:
    """Ranges with those that follow each other made one."""
    merged: list[Range] = []
    for start, stop in [(0, length)] if ranges is None else ranges:
        if not 0 <= start < stop <= length:
            raise ValueError(f"{what}: expected ranges within 0:{length}, got {start}:{stop}")
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, stop))
    if not merged:
        raise ValueError(f"{what}: expected at least one range")
    return merged


def _length(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _take(A: Tensor, ranges: Sequence[Range], dim: int) -> Tensor:
    pieces = [A.narrow(dim, start, stop - start) for start, stop in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)
