"""What a monitor computes at a measured step, and everything it keeps for that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from spectral_monitor.cadence import Cadence
from spectral_monitor.device.late_numbers import LateNumbers
from spectral_monitor.device.step import DeviceStep
from spectral_monitor.memory import solver_memory
from spectral_monitor.modes import plain_arithmetic
from spectral_monitor.step.alignments import Alignments
from spectral_monitor.step.changes import check_watch, grad_scale_of
from spectral_monitor.step.comparisons import Comparisons
from spectral_monitor.step.derived import Asked
from spectral_monitor.step.frame import SpectralFrame
from spectral_monitor.step.own_step import OwnStep
from spectral_monitor.step.readings import Readings
from spectral_monitor.step.reference import Given
from spectral_monitor.step.scalars import as_floats
from spectral_monitor.step.solvers import ExactSolver, RandomizedSolver, Solver
from spectral_monitor.step.tracked_solver import TrackedSolver
from spectral_monitor.watch_plan import WatchPlan
from torch import Tensor

METHODS = ("tracked", "exact", "randomized")
_VECTORS = 100  # Eq. 3 of Yunis et al. is plotted for i <= 100.
_TRIPLETS = 32
_TOLERANCE = 1e-3


class Measurement:
    """Measures the matrices of a plan, step by step.

    Args:
        plan: what is watched.
        method, k, tolerance, watch, grad_scale, seed: see `spectral_kernels.SpectralMonitor`.
        reference: the same, or a step of a recorded run.
        cadence: is told what steps on a device cost, when that is known.

    Raises:
        ValueError: an unknown option.
    """

    def __init__(
        self,
        plan: WatchPlan,
        *,
        method: str,
        k: int | None,
        tolerance: float | None,
        reference: Given,
        watch: Sequence[str],
        grad_scale: Any,
        seed: int,
        cadence: Cadence,
    ) -> None:
        _check_options(method, k, tolerance)
        self._plan, self.method, self.k, self.tolerance = plan, method, k, tolerance
        self.vectors = k or _VECTORS
        """How many vectors of each matrix take part."""
        self._generator = torch.Generator().manual_seed(seed)
        self.comparisons = Comparisons(
            reference,
            plan.matrices,
            self.vectors,
            check_watch(watch),
            plan.pairs,
            self._generator,
            grad_scale=grad_scale_of(grad_scale),
        )
        self.needs_vectors = self._which_need_vectors()
        self.solver = self._make_solver()
        self.asked = Asked(
            plan.matrices,
            self.solver,
            Alignments(plan.pairs, [*plan.matrices, *plan.parts], self.vectors),
            self.comparisons.reference,
            self.comparisons.clusters,
        )
        readings = Readings(plan.matrices, plan.parts)
        self.own = OwnStep(self.asked, self.comparisons.changes, readings, self.vectors)
        self.device = DeviceStep(self.asked, plan.parts, self.comparisons, self.vectors, cadence)

    def _make_solver(self) -> Solver:
        matrices, parts = self._plan.matrices, self._plan.parts
        if self.method == "exact":
            return ExactSolver(matrices, self.vectors, self.needs_vectors)
        if self.method == "randomized":
            return RandomizedSolver(matrices, self.k or _TRIPLETS, self._generator, parts)
        tolerance = _TOLERANCE if self.tolerance is None else self.tolerance
        return TrackedSolver(matrices, self.k, _VECTORS, tolerance, self.needs_vectors, parts)

    def _which_need_vectors(self) -> list[bool]:
        measured = [*self._plan.matrices, *self._plan.parts]
        if self.comparisons.wants_all_vectors:
            return [True] * len(measured)
        paired = {port.matrix.name for pair in self._plan.pairs for port in pair.ports}
        return [m.name in paired or m.name in self.comparisons.reference for m in measured]

    def start(self) -> None:
        """Take the matrices as they are now for the reference, where that is what it is."""
        if self.comparisons.reference.wants_init:
            with plain_arithmetic():
                self.device.started(self.own.start())

    def take(
        self, number: int, scalars: Mapping[str, float | Tensor], every: int
    ) -> tuple[SpectralFrame, LateNumbers | None]:
        """The frame of a step, and what is still to come of it; None where all is here."""
        values = as_floats(scalars, self.device.keeps(scalars))
        constant: dict[str, Any] = {
            "chance": self.comparisons.chance,
            "every": every,
            "reference": self.comparisons.reference.described,
        }
        with plain_arithmetic():
            late = self.device.take(values)
            if late is not None:
                frame = SpectralFrame.later(late, step=number, overlap={}, vectors={}, **constant)
                return frame, late
            fields = self.own.take()
            self.device.started(self.own.finite)
            return SpectralFrame(number, as_floats(values), math.nan, **fields, **constant), None

    def memory(self) -> dict[str, dict[str, int]]:
        """What is kept between steps -> matrix -> bytes."""
        return {
            **solver_memory(self.solver),
            **self.comparisons.memory(),
            **self.device.memory(),
        }

    def state(self) -> dict[str, Any]:
        """For ``state_dict``."""
        return {
            "comparisons": self.comparisons.state(),
            "generator": self._generator.get_state(),
            "solver": self.solver.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.device.forget()
        self.own.forget()
        self.comparisons.load_state(state["comparisons"])
        self._generator.set_state(state["generator"].cpu())
        self.solver.load_state(state["solver"])


def _check_options(method: str, k: int | None, tolerance: float | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if tolerance is not None and method != "tracked":
        raise ValueError(f"tolerance: an option of method 'tracked', got it with {method!r}")
    if k is not None and (isinstance(k, bool) or k != int(k) or k < 1):
        raise ValueError(f"k: expected a whole number of at least 1, got {k!r}")
