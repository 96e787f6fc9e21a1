"""What random directions would give in place of each measured number, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from spectral_monitor.model.matrix import Matrix
from spectral_monitor.pairs.ports import Pair, Port

from spectral_kernels.alignment.chance import (
    chance_agreement,
    chance_alignment,
    chance_overlap,
)

# Thousands of pairs have a few sizes.
_expected = cache(chance_alignment)


@dataclass(frozen=True, slots=True)
class Chance:
    """Expected values for random directions; the keys are those of a `SpectralFrame`."""

    alignment: dict[tuple[str, str], float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    overlap: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Name of the update or gradient -> its overlap on the left and on the right."""

    @classmethod
    def of(
        cls, matrices: Sequence[Matrix], pairs: Sequence[Pair], changed: Sequence[Matrix], k: int
    ) -> Chance:
        """For these weights, pairs of layers, and updates or gradients whose k directions meet
        as many of the weight."""
        overlap, ranks = {}, {matrix.name: matrix.rank for matrix in matrices}
        for matrix in changed:
            # A decomposed weight may have fewer directions than its update.
            weight = matrix.name.rpartition("[")[0]
            (m, n), few = matrix.shape, min(k, matrix.rank, ranks[weight])
            overlap[matrix.name] = (chance_overlap(m, few), chance_overlap(n, few))
        return cls(
            {
                pair.key: sum(_alignment(*m) for m in pair.meetings) / len(pair.meetings)
                for pair in pairs
            },
            {matrix.name: chance_agreement(*matrix.shape) for matrix in matrices},
            overlap,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the ``spectra.json`` of a run."""
        return {
            "alignment": [[*pair, value] for pair, value in self.alignment.items()],
            "agreement": self.agreement,
            "overlap": {name: list(sides) for name, sides in self.overlap.items()},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Chance:
        """The levels that `to_json` wrote."""
        return cls(
            {(first, second): value for first, second, value in content.get("alignment", [])},
            dict(content.get("agreement", {})),
            {name: (a, b) for name, (a, b) in content.get("overlap", {}).items()},
        )


def _alignment(first: Port, second: Port) -> float:
    # Entries cut out of singular vectors, such as those of a gate, are no unit vectors.
    one = first.matrix.name == second.matrix.name and first.side == second.side
    return _expected(len(first), first.side_length, second.side_length, same_vector=one)
