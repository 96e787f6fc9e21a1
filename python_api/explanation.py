"""What a monitor watches and what it does not, as text."""

from __future__ import annotations

from collections.abc import Sequence

from python_api.matrices import Matrix, Skipped
from python_api.pairs import Pair, Rejected

__all__ = ["explain"]


def explain(
    matrices: Sequence[Matrix],
    skipped: Sequence[Skipped],
    pairs: Sequence[Pair],
    rejected: Sequence[Rejected],
    reference: str,
) -> str:
    """Tables of matrices, skipped parameters, pairs and rejected pairs, with every reason."""
    sections = [
        (f"{len(matrices)} matrices", [_matrix(matrix) for matrix in matrices]),
        (
            f"{len(skipped)} parameters not watched",
            [(row.name, _shape(row.shape), row.reason) for row in skipped],
        ),
        (
            f"{len(pairs)} aligned pairs",
            [(pair.first.label, f"-> {pair.second.label}", pair.reason) for pair in pairs],
        ),
        (
            f"{len(rejected)} neighbours not aligned",
            [(row.first, f"-> {row.second}" if row.second else "", row.reason)
             for row in rejected],
        ),
    ]  # fmt: skip
    lines: list[str] = []
    for title, rows in sections:
        lines.append(title if not rows else f"{title}:")
        lines.extend(_table(rows))
    lines.append(f"agreement is measured against: {reference}")
    return "\n".join(lines)


def _matrix(matrix: Matrix) -> tuple[str, str, str]:
    notes = [matrix.kind]
    if matrix.aliases:
        notes.append(f"tied with {', '.join(matrix.aliases)}")
    if matrix.source.blocks:
        notes.append(f"parts: {', '.join(block.label for block in matrix.source.blocks)}")
    return matrix.name, _shape(matrix.shape), "; ".join(notes)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "-"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + "  " + row[-1]
        for row in rows
    ]  # fmt: skip
