"""One case of the GPU benchmarks: contenders on one input, each checked before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.comparison import Comparison
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.floors import Ceilings, Work

OURS = "ours"


@dataclass(frozen=True)
class Target:
    """What a case is meant to reach: times by contender -> a figure, and where it holds."""

    told: str
    figure: Callable[[dict[str, float], float], float]
    """Of the medians in ms by contender and the floor in ms."""
    holds: Callable[[float], bool]


@dataclass(frozen=True)
class Case:
    """A comparison with its floor and its targets."""

    comparison: Comparison
    work: Work
    targets: tuple[Target, ...] = ()


def at_most(told: str, limit_ms: float, contender: str = OURS) -> Target:
    """A time that may not be exceeded."""
    return Target(told, lambda times, floor: times[contender], lambda ms: ms <= limit_ms)


def times_faster(told: str, peer: str, factor: float, contender: str = OURS) -> Target:
    """A peer's time as a multiple of ours."""
    return Target(
        told, lambda times, floor: times[peer] / times[contender], lambda ratio: ratio >= factor
    )


def times_floor(told: str, factor: float, contender: str = OURS) -> Target:
    """Our time as a multiple of the floor."""
    return Target(
        told, lambda times, floor: times[contender] / floor, lambda ratio: ratio <= factor
    )


def run(case: Case, clock: Clock, ceilings: Ceilings) -> dict[str, Any]:
    """Check and time all contenders; a peer that cannot run is a row that says why."""
    floor_ms = ceilings.floor_ms(case.work)
    comparison = case.comparison
    rows = [_row(c, clock, floor_ms) for c in comparison.contenders]
    times = {row["contender"]: row["median_ms"] for row in rows if "median_ms" in row}
    return {
        "operation": comparison.operation,
        "case": comparison.case,
        "error_unit": comparison.error_unit,
        "work": asdict(case.work),
        "floor_ms": floor_ms,
        "rows": rows,
        "targets": [_verdict(target, times, floor_ms) for target in case.targets],
    }


def _row(contender: Any, clock: Clock, floor_ms: float) -> dict[str, Any]:
    row: dict[str, Any] = {"contender": contender.name}
    missing = contender.missing()
    if missing:
        return row | {"missing": missing}
    try:
        if contender.prepare:
            contender.prepare()
        error = contender.error(contender.run())
        # A wrong result has no time.
        if contender.limit is not None and not error <= contender.limit:
            told = f"errs by {error:.3g}, limit {contender.limit:.3g}"
            return row | {"error": error, "missing": told}
        timing = clock.time(contender.run, contender.prepare)
    except (RuntimeError, ValueError, NotImplementedError) as reason:
        told = str(reason).partition("\n")[0][:200]
        return row | {"missing": told or type(reason).__name__}
    return row | asdict(timing) | {"error": error, "times_floor": timing.median_ms / floor_ms}


def _verdict(target: Target, times: dict[str, float], floor_ms: float) -> dict[str, Any]:
    try:
        figure = target.figure(times, floor_ms)
    except KeyError as missing:
        return {"target": target.told, "missing": f"no time of {missing.args[0]}"}
    return {"target": target.told, "measured": figure, "holds": bool(target.holds(figure))}
