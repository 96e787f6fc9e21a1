"""A monitor's pairs held against those that are right."""

from __future__ import annotations

from dataclasses import dataclass

from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.pairs.ports import Pair, Port

from .truth import Place, Truth

__all__ = ["Judgement", "judge", "places_met"]


@dataclass(frozen=True)
class Judgement:
    """What a monitor found of what is right."""

    right: list[str]
    wrong: list[str]
    missed: list[str]

    @property
    def text(self) -> str:
        """Every fault, for the message of a test."""
        wrong = [f"wrong:  {row}" for row in self.wrong]
        return "\n".join([*wrong, *(f"missed: {row}" for row in self.missed)]) or "no fault"


def judge(monitor: SpectralMonitor, truth: Truth) -> Judgement:
    """Pairs whose every meeting is right count as found; one false entry makes a pair wrong."""
    right = truth.right()
    covered: set[tuple[Place, Place]] = set()
    wrong: list[str] = []
    for pair in monitor.pairs:
        fault = None
        met: set[tuple[Place, Place]] = set()
        for first, second in pair.meetings:
            ours, theirs = _places(truth, first), _places(truth, second)
            if len(ours) != len(theirs):
                fault = fault or f"{len(ours)} entries meet {len(theirs)}"
                continue
            rows = list(zip(ours, theirs, strict=True))
            false = next((i for i, row in enumerate(rows) if row not in right), None)
            if false is not None:
                fault = fault or f"entry {false} of {first.label} does not meet {second.label}"
            met.update(rows)
        if fault is None:
            covered |= met | {(second, first) for first, second in met}
        else:
            wrong.append(f"{' -> '.join(pair.key)}: {fault} ({pair.reason})")
    found = {key: any(way <= covered for way in e.ways) for key, e in truth.entries.items()}
    return Judgement(
        [" -> ".join(key) for key, is_found in found.items() if is_found],
        wrong,
        [" -> ".join(key) for key, is_found in found.items() if not is_found],
    )


def places_met(pair: Pair, truth: Truth) -> set[tuple[Place, Place]]:
    """What meets what in a pair, either way round."""
    met: set[tuple[Place, Place]] = set()
    for first, second in pair.meetings:
        rows = list(zip(_places(truth, first), _places(truth, second), strict=True))
        met.update(rows, [(b, a) for a, b in rows])
    return met


def _places(truth: Truth, port: Port) -> tuple[Place, ...]:
    """What the entries of a port are in the parameter: its matrix's view, of indices."""
    matrix = port.matrix
    parameter = truth.name_of_tensor(matrix.get())
    elements = truth.indices(parameter)
    view = elements if matrix.source.view is None else matrix.source.view(elements)
    side = view if port.side == "U" else view.T
    return truth.places(parameter, side[port.start : port.stop : port.step])
