"""What a monitor watches and what it does not, as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from spectral_monitor.cadence import Cadence
from spectral_monitor.forecast import Stepped, forecast
from spectral_monitor.measurement import Measurement
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.model_changes import Unwatched
from spectral_monitor.model.registry import Skipped
from spectral_monitor.model.similar_rows import together
from spectral_monitor.pairs.ports import Pair
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.chance import Chance
from spectral_monitor.step.frame import pair_name
from spectral_monitor.watch_plan import WatchPlan
from torch import Tensor

_Table = tuple[str, list[tuple[str, str, str]], tuple[int, str]]


def explain(
    plan: WatchPlan,
    skipped: Sequence[Skipped],
    reference: str,
    chance: Chance,
    *,
    unreadable: Mapping[str, str] | None = None,
    unwatched: Sequence[Unwatched] = (),
    full: bool = False,
) -> list[str]:
    """Lines: tables of matrices, skipped parameters, pairs and rejected pairs, with every reason.

    Beside each comparison stands what random directions would give in the mean. Rows that differ
    in their indices alone are one row, unless ``full``.
    """
    tables = _tables(plan, skipped, chance)
    if unwatched:
        rows = [(row.name, _shape(row.shape), row.reason) for row in unwatched]
        title = f"{len(rows)} parameters came after the monitor was made"
        tables.insert(2, (title, rows, (1, "{count} x ({cell})")))
    if unreadable:
        rows = [(name, "", reason) for name, reason in unreadable.items()]
        tables.insert(1, (f"{len(rows)} of them cannot be read now", rows, (2, "{cell}")))
    lines: list[str] = []
    shortened = False
    for title, rows, counted in tables:
        shown = rows if full else together(rows, *counted)
        shortened |= len(shown) < len(rows)
        lines.append(title if not rows else f"{title}:")
        lines.extend(_aligned(shown))
    if shortened:
        lines.append(
            "{0..9}: one row for each index; indices of one row that grow in step go "
            "together; explain(full=True) has every row"
        )
    lines.append(f"agreement is measured against: {reference}")
    if chance.overlap:
        left, right = (min(side) for side in zip(*chance.overlap.values(), strict=True))
        most_left, most_right = (max(side) for side in zip(*chance.overlap.values(), strict=True))
        lines.append(
            "overlap of updates and gradients with the weights by chance: "
            f"{left:.2g} to {most_left:.2g} left, {right:.2g} to {most_right:.2g} right"
        )
    return lines


def _tables(plan: WatchPlan, skipped: Sequence[Skipped], chance: Chance) -> list[_Table]:
    """Title and rows of every table, and how equal rows are counted in one."""
    return [
        (
            f"{len(plan.matrices)} matrices",
            [_matrix(matrix, chance) for matrix in plan.matrices],
            (1, "{count} x ({cell})"),
        ),
        (
            f"{len(skipped)} parameters not watched",
            [(row.name, _shape(row.shape), row.reason) for row in skipped],
            (1, "{count} x ({cell})"),
        ),
        (
            f"{len(plan.pairs)} aligned pairs",
            [_pair(pair, chance) for pair in plan.pairs],
            (2, "{count} pairs: {cell}"),
        ),
        (
            f"{len(plan.parts)} parts decomposed for these pairs alone",
            [(part.name, _shape(part.shape), f"of {part.whole}") for part in plan.parts],
            (1, "{count} x ({cell})"),
        ),
        (
            f"{len(plan.rejected)} neighbours not aligned",
            [(row.first, f"-> {row.second}" if row.second else "", row.reason)
             for row in plan.rejected],
            (2, "{count} of these: {cell}"),
        ),
    ]  # fmt: skip


def recorded_lines(
    plan: WatchPlan, measurement: Measurement, sinks: Sequence[object], vectors_per_step: int
) -> list[str]:
    """What goes to the disk with each frame."""
    k, is_exact = measurement.k, measurement.method == "exact"
    lengths = {m.name: m.rank if k is None or is_exact else min(m.rank, k) for m in plan.matrices}
    pairs = {
        pair_name(pair.key): min(measurement.vectors, *(port.matrix.rank for port in pair.ports))
        for pair in plan.pairs
    }
    return [
        sink.expected(lengths, pairs, measurement.vectors, vectors_per_step)
        for sink in sinks
        if isinstance(sink, Recorder)
    ]


def forecast_lines(
    plan: WatchPlan,
    measurement: Measurement,
    cadence: Cadence,
    monitor: Callable[..., Stepped],
) -> list[str]:
    """What a measurement will take, while none was timed; ``monitor`` makes one of weights and
    options."""
    if cadence.is_timed:
        return []
    devices = {matrix.device.type for matrix in plan.matrices}
    if devices != {"cpu"}:
        named = ", ".join(sorted(devices))
        return [f"what a measurement takes on {named} is told once some were timed"]

    def alike(weights: Mapping[str, Tensor], k: int | None) -> Stepped:
        reference = "init" if any(measurement.needs_vectors) else None
        options = {"method": measurement.method, "tolerance": measurement.tolerance}
        return monitor(weights, every=1, k=k, pairs=None, reference=reference, **options)

    expected = forecast([*plan.matrices, *plan.parts], measurement.k, alike)
    return expected.described(cadence.overhead).splitlines()


def _matrix(matrix: Matrix, chance: Chance) -> tuple[str, str, str]:
    notes = [matrix.kind, f"agreement by chance {chance.agreement[matrix.name]:.2g}"]
    if matrix.is_decomposed:
        notes.append(f"kept as U Sigma Vh with k = {matrix.inner}")
    if matrix.aliases:
        notes.append(f"tied with {', '.join(matrix.aliases)}")
    if matrix.source.note:
        notes.append(matrix.source.note)
    if matrix.source.blocks:
        notes.append(f"parts: {', '.join(block.label for block in matrix.source.blocks)}")
    return matrix.name, _shape(matrix.shape), "; ".join(notes)


def _pair(pair: Pair, chance: Chance) -> tuple[str, str, str]:
    by_chance = f"by chance {chance.alignment[pair.key]:.2g}"
    times = len(pair.meetings)
    mean = f", mean of {times}" if times > 1 else ""
    return pair.first, f"-> {pair.second}", f"{pair.reason}{mean} ({pair.origin}); {by_chance}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "-"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + "  " + row[-1]
        for row in rows
    ]  # fmt: skip
