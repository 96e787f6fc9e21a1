"""A comparison: one operation on one input, done by us and by peers, each checked, then timed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Contender:
    """One way to compute the same numbers."""

    name: str
    run: Callable[[], Any]
    """Does the work on inputs that are there already."""
    error: Callable[[Any], float]
    """Of a result, against float64."""
    limit: float | None = None
    """Our own results must not err by more; peers are only measured."""
    prepare: Callable[[], None] | None = None
    """Goes before every run, outside of the time."""
    needs: str | None = None
    """A package that may be absent; the row then says so."""

    def missing(self) -> str | None:
        """Why this one cannot run here, or None."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None


@dataclass(frozen=True)
class Comparison:
    """All contenders of one row group of the table."""

    operation: str
    case: str
    contenders: tuple[Contender, ...]
    error_unit: str


def run(benchmark: Any, comparison: Comparison, contender: Contender) -> None:
    """Check, then time; what the table needs goes into the benchmark's extra_info."""
    benchmark.group = f"{comparison.operation} {comparison.case}"
    benchmark.extra_info.update(
        operation=comparison.operation,
        case=comparison.case,
        contender=contender.name,
        error_unit=comparison.error_unit,
    )
    missing = contender.missing()
    if missing:
        benchmark.extra_info["missing"] = missing
        # A timing of nothing, so that the row is in the file; the table shows the reason.
        benchmark.pedantic(lambda: None, rounds=1)
        return
    if contender.prepare:
        contender.prepare()
    error = contender.error(contender.run())
    benchmark.extra_info["error"] = error
    if contender.limit is not None:
        assert error <= contender.limit, (
            f"{contender.name} errs by {error}, limit {contender.limit}"
        )
    _time(benchmark, contender.run, contender.prepare)


def _time(benchmark: Any, work: Callable[[], Any], prepare: Callable[[], None] | None) -> None:
    """Medians need some tens of rounds, and no contender more than about half a second.

    What takes seconds gets few rounds, and none to warm up but the one that was checked.
    """
    # The check has woken the threads of NumPy's BLAS and of PyTorch; they look for more work, on
    # the cores of the next contender, for some tens of milliseconds.
    time.sleep(0.2)
    if prepare:
        prepare()
    started = time.perf_counter()
    work()
    once = time.perf_counter() - started
    if prepare or once > 1.0:
        rounds = min(50, max(1, int(3.0 / once)))
        benchmark.pedantic(work, setup=prepare, rounds=rounds, iterations=1)
        return
    iterations = max(1, int(1e-3 / once))
    rounds = min(50, max(3, int(0.5 / (once * iterations))))
    benchmark.pedantic(work, rounds=rounds, iterations=iterations, warmup_rounds=1)


def parametrize(
    make: Callable[..., Comparison], cases: list[tuple[Any, ...]], names: list[str]
) -> Any:
    """One test per case and contender; `make` is called anew for each, with the same seed."""
    return pytest.mark.parametrize(
        ("make", "arguments", "name"),
        [
            pytest.param(make, case, name, id="-".join([*map(str, case), name.replace(" ", "_")]))
            for case in cases
            for name in names
        ],
    )


def run_named(
    benchmark: Any, make: Callable[..., Comparison], arguments: tuple[Any, ...], name: str
) -> None:
    """Build the comparison and run the contender of this name."""
    comparison = make(*arguments)
    run(benchmark, comparison, next(c for c in comparison.contenders if c.name == name))
