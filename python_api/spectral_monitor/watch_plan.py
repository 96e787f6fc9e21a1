"""What a monitor watches of a model: its matrices, the pairs of them that meet, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spectral_monitor.model.config import HeadCounts
from spectral_monitor.model.layer_tree import build_tree
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.model_changes import ModelChanges
from spectral_monitor.model.natural_order import REORDERED, natural_order
from spectral_monitor.model.parameters import modules_of, parameter_names, parameters_of
from spectral_monitor.model.parametrized import Shown
from spectral_monitor.model.registry import MatrixRegistry, Skipped, find_matrices
from spectral_monitor.model.rules import default_registry
from spectral_monitor.pairs.discovery import discover_pairs
from spectral_monitor.pairs.ports import Pair, Rejected, submatrices_of
from spectral_monitor.pairs.tracing.map import Trace
from spectral_monitor.pairs.tracing.traced_pairs import traced_pairs
from spectral_monitor.pairs.user_pairs import resolve_pairs
from torch import Tensor, nn

GivenPairs = Literal["auto"] | Trace | Sequence[tuple[str, str]] | None


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """The matrices of a model, and how they are paired, see `spectral_kernels.SpectralMonitor`."""

    matrices: list[Matrix]
    skipped: list[Skipped]
    pairs: list[Pair]
    parts: list[Matrix]
    """Parts of matrices that pairs need the singular vectors of."""
    rejected: list[Rejected]
    changes: ModelChanges
    notes: list[str]
    """What was assumed of the model as a whole, for ``explain``."""


def watch_plan(
    model: nn.Module | Mapping[str, Tensor],
    *,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    pairs: GivenPairs,
    heads: int | Mapping[str, int] | None,
    registry: MatrixRegistry | None,
    parametrized: Shown,
    config: Any,
) -> WatchPlan:
    """Find the matrices and pairs of a model; the options are those of the monitor.

    Raises:
        ValueError: a pattern that fits nothing, a pair that does not chain, or a model without
            matrices.
    """
    modules = modules_of(model)
    counts = HeadCounts(heads, modules, parameter_names(model), config)
    parameters = parameters_of(model, counts.queries, parametrized)
    matrices, skipped = find_matrices(
        parameters,
        registry or default_registry(),
        include=_patterns(include),
        exclude=_patterns(exclude),
    )
    changes = ModelChanges(model, parameters, matrices, skipped)
    if not matrices:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in skipped[:8])
        raise ValueError(f"no matrix to watch in the model ({reasons or 'no parameters'})")
    is_sorted = not isinstance(model, nn.Module) and natural_order(list(model)) is not None
    notes = [REORDERED] if is_sorted else []
    if isinstance(pairs, Trace):
        chosen, rejected = traced_pairs(pairs, matrices)
        notes += [f"trace: {note}" for note in pairs.notes()]
    elif pairs is None:
        chosen, rejected = [], []
    else:
        # Factors are not layers, and what holds them is none of the model's scopes.
        names = (info.name for info, _ in parameters if info.factor_of is None)
        consecutive, rejected = discover_pairs(
            build_tree(names, modules, matrices, skipped), counts
        )
        chosen, rejected = _asked_for(pairs, consecutive, rejected, matrices)
    return WatchPlan(
        matrices, skipped, chosen, submatrices_of(chosen, matrices), rejected, changes, notes
    )


def _asked_for(
    pairs: str | Sequence[tuple[str, str]],
    consecutive: list[Pair],
    rejected: list[Rejected],
    matrices: Sequence[Matrix],
) -> tuple[list[Pair], list[Rejected]]:
    if not isinstance(pairs, str):
        return resolve_pairs(pairs, consecutive, matrices), []
    if pairs != "auto":
        raise ValueError(f"pairs: expected 'auto', a trace, a list of names or None, got {pairs!r}")
    return consecutive, rejected


def _patterns(given: str | Sequence[str] | None) -> Sequence[str] | None:
    return [given] if isinstance(given, str) else given
