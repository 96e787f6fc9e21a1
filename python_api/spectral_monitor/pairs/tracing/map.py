"""`Trace`: the map of a model that a forward pass drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from spectral_monitor.model.similar_rows import together

Indices = npt.NDArray[np.int64]
_VERSION = 1


@dataclass(frozen=True, eq=False, slots=True)
class Side:
    """Outputs or inputs of a weight, each by one of its elements."""

    parameter: str
    elements: Indices
    """(K,) row-major indices in the parameter: of the i-th output an element of its first input, of
    the i-th input one of its first output."""
    across: Indices | None = None
    """Elements along the other side, where the weight is several matrices of one parameter that
    act together, as one for each head."""

    def to_list(self) -> list[Any]:
        """Plain values, for JSON: the name and runs of (start, step, count)."""
        across = None if self.across is None else _runs(self.across)
        return [self.parameter, _runs(self.elements), across]

    @staticmethod
    def from_list(values: list[Any]) -> Side:
        """The side that `to_list` wrote."""
        name, elements, across = values
        return Side(name, _of_runs(elements), None if across is None else _of_runs(across))


@dataclass(frozen=True, eq=False, slots=True)
class Edge:
    """Entries of two weights that met one by one in a product."""

    kind: str
    """"feeds": outputs of the first are inputs of the second; "values": the same, through the
    probabilities of an attention; "scores": outputs of both are multiplied and a softmax follows
    (queries and keys); "multiplied": the same without a softmax."""
    first: Side
    second: Side
    head: int | None = None
    """Outputs of one head, of "values"."""
    inferred: bool = False
    """Whether no input came by, and the edge is that of an expert beside this one."""

    def __str__(self) -> str:
        note = " (as the experts beside it)" if self.inferred else ""
        return f"{self.first.parameter} -> {self.second.parameter}: {self.kind}{note}"


@dataclass(frozen=True, eq=False)
class Trace:
    """Which weight feeds which, of one model; ``pairs=`` of `SpectralMonitor` takes it.

    It names parameters and their elements alone, so it serves a state dict of the same model or
    another process too: `to_dict` and `from_dict` are for saving it as JSON, as in
    ``sk.Trace.from_dict(json.loads(text))``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> traced = sk.trace(model, torch.ones(1, 4))
        >>> print(traced.explain())
        Trace(1 edges between 1 pairs of parameters, 0 not reached, 0 unknown operations)
          0.weight -> 1.weight: feeds
        >>> sk.Trace.from_dict(traced.to_dict()).notes()
        []
    """

    edges: tuple[Edge, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Parameter -> shape, tied ones under each of their names."""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name that edges use -> other names of the same parameter."""
    unreached: tuple[str, ...] = ()
    """Parameters of two dimensions or more that took no part in the pass."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """Operations that no rule knows -> how often what they did was not followed."""
    mixed: tuple[tuple[str, str, str], ...] = ()
    """Parameter, operation, parameter: the last read what the operation made of the outputs of the
    first, such as sums of them or their products with a constant matrix, so the two are no pair.
    The first two are empty where nothing tells what the last one read."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "version": _VERSION,
            "edges": [_edge_to_list(edge) for edge in self.edges],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "aliases": {name: list(names) for name, names in self.aliases.items()},
            "unreached": list(self.unreached),
            "ended": dict(self.ended),
            "mixed": [list(row) for row in self.mixed],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Trace:
        """The trace that `to_dict` wrote.

        Args:
            values: what `to_dict` returned, maybe by way of JSON.

        Raises:
            ValueError: of another version.
        """
        if values.get("version") != _VERSION:
            raise ValueError(f"trace: version {values.get('version')!r}, expected {_VERSION}")
        return Trace(
            tuple(_edge_from_list(edge) for edge in values["edges"]),
            {name: tuple(shape) for name, shape in values["shapes"].items()},
            {name: tuple(names) for name, names in values["aliases"].items()},
            tuple(values["unreached"]),
            dict(values["ended"]),
            tuple((first, name, last) for first, name, last in values.get("mixed", ())),
        )

    def notes(self) -> list[str]:
        """What the trace does not know, a line each."""
        lines = [
            f"{name}: {count} times; what wrote its result is not known, and no pair goes through"
            for name, count in self.ended.items()
        ]
        rows = [(last, _mixed(first, name)) for first, name, last in self.mixed]
        lines_of_mixed = together(rows, 1, "{cell} ({count} of these)")
        lines += [f"{last}: {reason}" for last, reason in lines_of_mixed]
        if self.unreached:
            lines.append(f"not reached by these inputs: {_some(self.unreached)}")
        seen = {side.parameter for edge in self.edges if not edge.inferred
                 for side in (edge.first, edge.second)}  # fmt: skip
        inferred = [edge for edge in self.edges if edge.inferred]
        if inferred:
            names = dict.fromkeys(
                side.parameter
                for edge in inferred
                for side in (edge.first, edge.second)
                if side.parameter not in seen
            )
            of = f", of {_some(list(names))}" if names else " of stacked experts"
            lines.append(
                f"{len(inferred)} edges{of}: no input came there, and they are as those of the "
                "experts beside them"
            )
        return lines

    def explain(self, *, full: bool = False) -> str:
        """All edges, and what the trace does not know.

        Args:
            full: a line for each two parameters; otherwise layers and experts that repeat are in
                one, ``layers.{0..31}.up.weight -> layers.{0..31}.down.weight``.
        """
        # Which experts no input reached follows no rule; in short, the notes alone say it.
        texts = (str(edge if full else replace(edge, inferred=False)) for edge in self.edges)
        rows = [(text,) for text in dict.fromkeys(texts)]
        shown = rows if full else together(rows, 0, "{cell} ({count} of these)")
        lines = [repr(self), *(f"  {row}" for (row,) in shown)]
        if len(shown) < len(rows):
            lines.append(
                "  {0..9}: one edge for each index; indices of one line that grow in step "
                "go together; explain(full=True) has every edge"
            )
        return "\n".join([*lines, *self.notes()])

    def __str__(self) -> str:
        return self.explain()

    def __repr__(self) -> str:
        pairs = {(edge.first.parameter, edge.second.parameter) for edge in self.edges}
        return (
            f"Trace({len(self.edges)} edges between {len(pairs)} pairs of parameters, "
            f"{len(self.unreached)} not reached, {len(self.ended)} unknown operations)"
        )


def _mixed(writer: str, operation: str) -> str:
    if not writer:
        return "what wrote its input is not known, no weight's outputs by themselves"
    return f"{operation} mixes the outputs of {writer} before they get here: no pair"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _edge_to_list(edge: Edge) -> list[Any]:
    return [edge.kind, edge.first.to_list(), edge.second.to_list(), edge.head, edge.inferred]


def _edge_from_list(values: list[Any]) -> Edge:
    kind, first, second, head, inferred = values
    return Edge(kind, Side.from_list(first), Side.from_list(second), head, inferred)


def _runs(indices: Indices) -> list[list[int]]:
    """Arithmetic sequences (start, step, count) that make the indices."""
    runs: list[list[int]] = []
    for index in indices.tolist():
        if runs:
            start, step, count = runs[-1]
            if count == 1:
                runs[-1] = [start, index - start, 2]
                continue
            if index == start + step * count:
                runs[-1][2] += 1
                continue
        runs.append([index, 0, 1])
    return runs


def _of_runs(runs: list[list[int]]) -> Indices:
    parts = [start + step * np.arange(count) for start, step, count in runs]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)
