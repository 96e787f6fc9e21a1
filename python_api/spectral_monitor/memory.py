"""What a monitor keeps between steps, in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from spectral_monitor.model.matrix import Matrix
from spectral_monitor.model.similar_rows import together


@runtime_checkable
class KeepsMemory(Protocol):
    """A solver with a state of its own."""

    def memory(self) -> dict[str, int]:
        """Matrix -> bytes that the solver keeps between steps for that matrix."""
        ...


def solver_memory(solver: Any) -> dict[str, dict[str, int]]:
    """``{"solver": {matrix: bytes}}``, empty for a solver that keeps nothing."""
    return {"solver": solver.memory()} if isinstance(solver, KeepsMemory) else {}


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by purpose and by matrix. Buffers of a step that is under way are not in it."""

    weights: dict[str, int]
    """Matrix -> bytes of the weight itself or of its factors, for comparison."""
    kept: dict[str, dict[str, int]]
    """Purpose ("solver", "parts for alignment", "reference", "copy for updates") -> matrix ->
    bytes; what is kept for parts counts for the matrices that they are parts of."""
    disk_per_step: int
    """Bytes of saved vectors for each measured step."""

    @classmethod
    def of(
        cls,
        matrices: Sequence[Matrix],
        parts: Sequence[Matrix],
        kept: Mapping[str, Mapping[str, int]],
        *,
        per_step: int,
    ) -> MemoryPlan:
        """The plan for these matrices and parts."""
        weights = {matrix.name: matrix.nbytes for matrix in matrices}
        first = {matrix.parameter: matrix.name for matrix in reversed(matrices)}
        whole = {p.name: p.whole if p.whole in weights else first[p.parameter] for p in parts}
        purposes: dict[str, dict[str, int]] = {}
        for what, sizes in kept.items():
            for name, size in sizes.items():
                purpose = "parts for alignment" if name in whole else what
                by_matrix = purposes.setdefault(purpose, {})
                owner = str(whole.get(name, name))
                by_matrix[owner] = by_matrix.get(owner, 0) + size
        return cls(weights, purposes, per_step)

    @property
    def total(self) -> int:
        """All that is kept in memory."""
        return sum(sum(sizes.values()) for sizes in self.kept.values())

    def lines(self, *, full: bool = False) -> list[str]:
        """As text: the sum, and a line for each matrix; where not ``full``, one for all that
        differ in the indices of their names alone."""
        weights = sum(self.weights.values())
        share = f", {self.total / weights:.2f} times the weights" if weights else ""
        lines = [f"memory kept between steps: {format_bytes(self.total)}{share}"]
        rows = []
        for name, own in self.weights.items():
            parts = [
                f"{what} {format_bytes(sizes[name])}"
                for what, sizes in self.kept.items()
                if sizes.get(name)
            ]
            if parts:
                rows.append((name, f"weight {format_bytes(own)}: {', '.join(parts)}"))
        shown = rows if full else together(rows, 1, "{count} times: {cell}")
        wide = max((len(name) for name, _ in shown), default=0)
        lines += [f"  {name.ljust(wide)}  {sizes}" for name, sizes in shown]
        if self.disk_per_step:
            lines.append(
                f"saved vectors: {format_bytes(self.disk_per_step)} on disk for each measured "
                f"step, {format_bytes(1000 * self.disk_per_step)} for a thousand"
            )
        return lines


def format_bytes(count: int) -> str:
    """A size as a person writes it, ``1.3 MB``."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
