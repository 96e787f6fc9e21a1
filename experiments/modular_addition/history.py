"""A finished run as arrays over its steps, read back from the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spectral_monitor.run.reader import load_run

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class History:
    """What the claims and the table need; every array has one entry per recorded step.

    Scalars are NaN at steps where they were not measured. ``sides`` has the smaller side r of each
    matrix, ``ranks`` its exp(H) / r, ``stable_ranks`` its stable rank, not normalised.
    ``alignment`` is the diagonal of each pair of layers, (steps, k) (Equation 3 of Yunis et al.
    2024), the mean over heads where they meet head by head.
    """

    steps: NDArray[np.int64]
    scalars: dict[str, FloatArray]
    sides: dict[str, int]
    ranks: dict[str, FloatArray]
    stable_ranks: dict[str, FloatArray]
    alignment: Mapping[tuple[str, str], FloatArray]

    @property
    def memorized_at(self) -> int | None:
        """The first step with training accuracy 1."""
        return self._first_at_one("train_accuracy")

    @property
    def generalized_at(self) -> int | None:
        """The first step with validation accuracy 1."""
        return self._first_at_one("validation_accuracy")

    def index(self, step: int) -> int:
        """Where ``step`` is in the arrays."""
        return int(np.searchsorted(self.steps, step))

    def mean_rank(self) -> FloatArray:
        """Mean of the normalised effective ranks of all matrices."""
        mean: FloatArray = np.mean(list(self.ranks.values()), axis=0)
        return mean

    def alignment_score(self, pair: tuple[str, str]) -> FloatArray:
        """a(t), the mean of the first ten entries of the diagonal (Equation 4)."""
        scores: FloatArray = self.alignment[pair][:, :10].mean(axis=1)
        return scores

    def alignment_centre(self, pair: tuple[str, str]) -> FloatArray:
        """Where on the diagonal the alignment is: the mean index, from 1, weighted by A_ii²."""
        weight = np.square(self.alignment[pair], dtype=np.float64)
        centre: FloatArray = weight @ np.arange(1, weight.shape[1] + 1) / weight.sum(axis=1)
        return centre

    def _first_at_one(self, scalar: str) -> int | None:
        hits = np.flatnonzero(self.scalars[scalar] == 1.0)
        return int(self.steps[hits[0]]) if len(hits) else None


def read_history(folder: Path) -> History:
    """The history of the run in ``folder``, up to where it is recorded."""
    run = load_run(folder)
    sides = {name: values.shape[1] for name, values in run.singular_values.items()}
    exponential = run.metrics["effective_rank_exp"]
    return History(
        steps=run.steps,
        scalars=run.scalars,
        sides=sides,
        ranks={name: exponential[name] / side for name, side in sides.items()},
        stable_ranks=run.metrics["stable_rank"],
        alignment=run.alignment,
    )
