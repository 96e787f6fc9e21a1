"""The results of one step of the monitor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from spectral_monitor.step.chance import Chance

from spectral_kernels.entry.results import METRICS, SVD
from spectral_kernels.runtime.limits import SCORE_ENTRIES

if TYPE_CHECKING:
    from spectral_monitor.step.dataframes import DataFrame

Array = npt.NDArray[np.floating[Any]]


@dataclass(slots=True)
class MatrixRow:
    """What one step says about one matrix. Values are NaN where the matrix is not finite.

    Example:
        >>> row = sk.SpectralMonitor(torch.nn.Linear(4, 3), every=1).step(0).matrices["weight"]
        >>> row.shape, row.kind, row.finite
        ((3, 4), 'linear', True)
        >>> row.bounds["stable_rank"] < 1e-2
        True
    """

    name: str
    shape: tuple[int, int]
    kind: str
    method: str
    finite: bool
    """Whether every entry of the matrix could be read and is a finite number; see ``reason``."""
    work: str
    """What method "tracked" did: "kept" (the last vectors still hold), "rotated", "solved" anew
    and so on, see `spectral_kernels.SpectrumTracker.work`; where the values are computed from
    scratch (short sides above 384), what it did to the leading vectors, with ", unsettled" where
    these may miss a direction. Empty for other methods."""
    singular_values: Array
    """(r,), or (k,) where the method computes k; descending; a NumPy array."""
    singular_value_bounds: Array
    """Largest possible error of each, absolute, float64, as long as ``singular_values``."""
    effective_rank: float
    """Entropy of sigma / sum(sigma), in nats (Eq. 1 of Yunis et al.)."""
    effective_rank_exp: float
    """Its exponential: as many equal singular values have this entropy (Roy & Vetterli)."""
    stable_rank: float
    """Square of the Frobenius norm over that of the spectral norm."""
    numerical_rank: float
    """How many singular values are above max(m, n) eps sigma_1."""
    spectral_norm: float
    nuclear_norm: float
    """Sum of the singular values."""
    frobenius_norm: float
    metric_bounds: Sequence[float] = field(repr=False)
    """Bounds of the seven numbers above, in their order; see `bounds`."""
    reason: str = ""
    """Why there are no numbers: NaN or infinity in the matrix, a parameter that cannot be read now
    (a DTensor, a shard, freed memory, another shape), a gradient that is None. Empty where there
    are some."""

    @property
    def bounds_follow(self) -> bool:
        """Whether bounds are 8 eps sigma_1 alone, which is not recorded: "exact", in float32."""
        return self.method == "exact" and self.singular_values.dtype == np.float32

    @property
    def is_weight(self) -> bool:
        """Whether this is a weight, not the update or the gradient of one."""
        return self.kind not in ("update", "gradient")

    @property
    def bounds(self) -> dict[str, float]:
        """Metric -> largest possible error of its value, absolute; ``singular_values`` -> the
        largest of all of them.

        They follow from the bounds of the singular values, which a tracker proves at every step
        (`spectral_kernels.bounds_from_value_bounds`). Values computed from scratch have the
        rounding that those solvers are tested against: 8 eps sigma_1 in float32, and
        (8 + max(m, n)) eps sigma_1 in float64, where it is LAPACK's or like it.
        """
        every = self.singular_value_bounds
        return {
            "singular_values": float(every.max()) if len(every) else 0.0,
            **dict(zip(METRICS, self.metric_bounds, strict=True)),
        }

    @property
    def normalized_effective_rank(self) -> float:
        """Effective rank divided by min(m, n) (Eq. 2 of Yunis et al.)."""
        return self.effective_rank / min(self.shape)

    @property
    def normalized_stable_rank(self) -> float:
        """Stable rank divided by min(m, n)."""
        return self.stable_rank / min(self.shape)


class Late(Protocol):
    """Numbers of a frame that are still on their way from a device."""

    @property
    def arrived(self) -> bool:
        """Whether the numbers are here."""
        ...

    def fields(self) -> Mapping[str, Any]:
        """Field of a frame -> value; waits for them where they have not arrived."""
        ...


@dataclass(slots=True)
class SpectralFrame:
    """All results of one step.

    On a GPU the step is only issued: the frame is there before its numbers are, and looking at one
    of them waits for all. `arrived` tells whether it would.

    Example:
        >>> frame = sk.SpectralMonitor(torch.nn.Linear(4, 3), every=1).step(0, loss=0.5)
        >>> frame.matrices["weight"].singular_values.shape
        (3,)
        >>> frame.mean("effective_rank") == frame.matrices["weight"].effective_rank
        True
        >>> frame.to_dict()["scalars"]
        {'loss': 0.5}
        >>> frame.to_dataframe().columns.tolist()
        ['step', 'matrix', 'metric', 'value', 'bound', 'reason']
    """

    step: int
    scalars: dict[str, float]
    """What the caller passed along, such as the loss."""
    overhead: float
    """Share of the time since the last frame that the monitor took; NaN for the first."""
    matrices: Mapping[str, MatrixRow]
    alignment: Mapping[tuple[str, str], Array]
    """(name, name of the next layer) -> diagonal of |U^T V'| (Eq. 3); at most 100 entries unless
    ``k`` says otherwise. Where two layers meet in every head of an attention, each head's rows
    or columns have an SVD of their own and this is the mean over the heads: queries with keys,
    ``(qkv.weight[q], qkv.weight[k])``, and values with the output ``[by head]``."""
    agreement: Mapping[str, Array]
    """Name -> |u_i . u'_i| |v_i . v'_i| against the reference (diagonal of Eq. 5); empty where
    there is none, or where it is the end of the run (``reference="final"``)."""
    subspace_agreement: Mapping[str, Array] = field(default_factory=dict)
    """Name -> the same for the subspaces of the cluster that each index is in, equal to
    ``agreement`` where it is alone; see `spectral_kernels.subspace_agreement`."""
    identifiable: Mapping[str, Array] = field(default_factory=dict)
    """Name -> whether the single vectors of each index can be told apart here and in the reference
    (without one, at the last measured step), bool; where not, their agreement means nothing. See
    `spectral_monitor.step.clusters`."""
    overlap: Mapping[str, Array] = field(default_factory=dict)
    """``fc1.weight[update]`` or ``[gradient]`` -> overlap of its ten leading (left, right)
    directions with those of the weight; 10 / m and 10 / n are what chance gives."""
    chance: Chance = field(default_factory=Chance, repr=False)
    """What random directions would give in place of alignment, agreement and overlap; the same
    at every step."""
    vectors: dict[str, SVD] = field(default_factory=dict, repr=False)
    """Name -> leading vectors, on the device of the weights, where they are to be saved
    (``reference="final"``). Views of what the solver has, which the next step may overwrite; they
    are part of no table."""
    every: int = 1
    """Steps from one measurement to the next, as planned when this one was made; changes only
    with a budget (``overhead=``)."""
    identities: Mapping[str, Array] = field(default_factory=dict, repr=False)
    """Name -> int64, which vector has each singular value: numbers that stay with vectors while
    their values cross, see `spectral_kernels.SpectrumTracker.identities`. Of method "tracked"."""
    reference: str = ""
    """What ``agreement`` is with, in words."""
    _late: Late | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def later(cls, late: Late, **given: Any) -> SpectralFrame:
        """A frame with these fields; ``late`` gives all others when one is first looked at."""
        frame = object.__new__(cls)
        frame._late = late
        for name, value in given.items():
            setattr(frame, name, value)
        return frame

    @property
    def arrived(self) -> bool:
        """Whether all numbers are here, so that looking at them waits for nothing."""
        return self._late is None or self._late.arrived

    if not TYPE_CHECKING:
        # To a type checker it would make every misspelt name an attribute.
        def __getattr__(self, name: str) -> Any:
            # Asked for fields that have no value yet only.
            if name.startswith("_") or name not in type(self).__dataclass_fields__:
                raise AttributeError(f"a SpectralFrame has no {name!r}")
            for late_name, value in self._late.fields().items():
                setattr(self, late_name, value)
            self._late = None
            return object.__getattribute__(self, name)

    def mean(self, metric: str) -> float:
        """Mean over the weights of a metric, such as ``normalized_effective_rank``.

        Those that are not finite are left out; NaN where none is.
        """
        rows = [row for row in self.matrices.values() if row.is_weight]
        values = [float(getattr(row, metric)) for row in rows]
        finite = [value for value in values if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and strings."""
        return {
            "step": self.step,
            "scalars": dict(self.scalars),
            "overhead": self.overhead,
            "every": self.every,
            "reference": self.reference,
            "matrices": {
                name: {
                    "shape": list(row.shape),
                    "kind": row.kind,
                    "method": row.method,
                    "finite": row.finite,
                    "work": row.work,
                    "reason": row.reason,
                    "singular_values": row.singular_values.tolist(),
                    "singular_value_bounds": row.singular_value_bounds.tolist(),
                    **{metric: getattr(row, metric) for metric in METRICS},
                    "bounds": row.bounds,
                }
                for name, row in self.matrices.items()
            },
            "alignment": {pair_name(p): d.tolist() for p, d in self.alignment.items()},
            **{
                group: {name: values.tolist() for name, values in getattr(self, group).items()}
                for group in (
                    "agreement",
                    "subspace_agreement",
                    "identifiable",
                    "overlap",
                    "identities",
                )
            },
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """Rows of the long form: step, matrix, metric, value, bound (NaN where none is known), and
        the reason where a matrix has no numbers."""
        reasons = {name: row.reason for name, row in self.matrices.items()}

        def record(
            matrix: str | None, metric: str, value: float, bound: float = math.nan
        ) -> dict[str, Any]:
            return {"step": self.step, "matrix": matrix, "metric": metric, "value": value,
                    "bound": bound, "reason": reasons.get(matrix or "", "")}  # fmt: skip

        for name, value in self.scalars.items():
            yield record(None, name, value)
        yield record(None, "overhead", self.overhead)
        for name, row in self.matrices.items():
            bounds = row.bounds
            for metric in METRICS:
                yield record(name, metric, getattr(row, metric), bounds.get(metric, math.nan))
            r = min(row.shape)
            yield record(name, "normalized_effective_rank", row.normalized_effective_rank,
                         bounds.get("effective_rank", math.nan) / r)  # fmt: skip
            spectrum = zip(row.singular_values.tolist(), row.singular_value_bounds.tolist(),
                           strict=True)  # fmt: skip
            for i, (value, bound) in enumerate(spectrum):
                yield record(name, f"singular_value[{i}]", value, bound)
        for pair, diagonal in self.alignment.items():
            yield record(pair_name(pair), "alignment_score", alignment_score(diagonal))
        for name, values in self.agreement.items():
            yield record(name, "agreement_score", alignment_score(values))
        for name, values in self.subspace_agreement.items():
            yield record(name, "subspace_agreement_score", alignment_score(values))
        for name, sides in self.overlap.items():
            for side, value in zip(("left", "right"), sides.tolist(), strict=True):
                yield record(name, f"overlap_{side}", value)

    def to_dataframe(self) -> DataFrame:
        """The long form as a pandas table, see `records`."""
        from spectral_monitor.step.dataframes import long_form

        return long_form(self.records())


def pair_name(pair: tuple[str, str]) -> str:
    """One string for a pair of layers, ``fc1.weight -> fc2.weight``."""
    return f"{pair[0]} -> {pair[1]}"


def alignment_score(diagonal: Array, top: int = SCORE_ENTRIES) -> float:
    """Mean of the first ``top`` entries of a diagonal (Eq. 4), NaN where there is none."""
    # The sum of a short slice: np.mean costs five times as much, at every pair of every step.
    head = diagonal[:top]
    return float(head.sum(dtype=np.float64)) / len(head) if len(head) else math.nan


def rows_by_kind(rows: Mapping[str, MatrixRow]) -> dict[str, list[MatrixRow]]:
    """Rows grouped by the family of their matrix."""
    groups: dict[str, list[MatrixRow]] = {}
    for row in rows.values():
        groups.setdefault(row.kind, []).append(row)
    return groups
