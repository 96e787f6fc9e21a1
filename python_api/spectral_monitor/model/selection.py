"""What of the matrices that were found is watched: the patterns of include and exclude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.name_patterns import check_all_matched, matches

__all__ = ["Skipped", "select"]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A parameter (or part) that is not watched, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str
    is_layer: bool = False
    """A matrix that is not watched: its neighbours are not consecutive layers then."""


def _names(matrix: Matrix) -> tuple[str, ...]:
    own = matrix.made_of if matrix.form == "raw" else ()
    return (matrix.name, matrix.parameter, *matrix.aliases, *own)


def _check_patterns(
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    found: Sequence[Matrix],
    skipped: Sequence[Skipped],
) -> None:
    known = dict.fromkeys(name for matrix in found for name in _names(matrix))
    known.update(dict.fromkeys(row.name for row in skipped))
    check_all_matched("include", include or (), known)
    check_all_matched("exclude", exclude or (), known)


def select(
    found: Sequence[Matrix],
    skipped: list[Skipped],
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> tuple[list[Matrix], list[Skipped]]:
    """The matrices that the patterns choose, and all that are not watched.

    Raises:
        ValueError: a pattern fits nothing.
    """
    _check_patterns(include, exclude, found, skipped)
    kept: list[Matrix] = []
    for matrix in found:
        names = _names(matrix)
        out = next((p for p in exclude or () if any(matches(n, p) for n in names)), None)
        if out is not None:
            skipped.append(Skipped(matrix.name, matrix.shape, f"excluded by {out!r}", True))
        elif include is not None and not any(matches(n, p) for n in names for p in include):
            skipped.append(Skipped(matrix.name, matrix.shape, "not in include", True))
        else:
            kept.append(matrix)
    return kept, skipped
