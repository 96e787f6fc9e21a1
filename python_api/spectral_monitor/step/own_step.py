"""A step of the monitor that is waited for: every number of it is here when it returns."""

from __future__ import annotations

from typing import Any

import torch
from spectral_monitor.model.matrix import Kept
from spectral_monitor.step.changes import Changes
from spectral_monitor.step.derived import Asked, Layout, radii_of
from spectral_monitor.step.program import StepProgram
from spectral_monitor.step.readings import Readings
from spectral_monitor.step.row_table import tell_reasons
from spectral_monitor.step.unpacking import Unpacking


class OwnStep:
    """Takes steps with the matrices where they are, on the current stream of a device.

    Args:
        asked: what to compute.
        changes: of the weights, see `spectral_monitor.step.changes`.
        readings: the matrices and parts.
        k: how many vectors of each matrix take part.
    """

    def __init__(self, asked: Asked, changes: Changes, readings: Readings, k: int) -> None:
        self._asked, self._changes, self._readings, self._k = asked, changes, readings, k
        self._program: StepProgram | None = None
        self._unpacking: Unpacking | None = None
        self._layout: Layout | None = None
        self.finite: list[bool] = []
        """Which matrices were finite at the last step."""

    def start(self) -> list[bool]:
        """Take the matrices as they are now for the reference; returns which are finite."""
        own = self._asked.solver.update(self._readings.take())[: len(self._asked.matrices)]
        assert self._asked.reference is not None
        assert self._asked.clusters is not None
        finite = [code >= 0 for code in torch.stack([x.code for x in own]).tolist()]
        self._asked.reference.remember([x.svd for x in own], finite)
        matrices = zip(self._asked.matrices, own, radii_of(self._asked, own), finite, strict=True)
        self._asked.clusters.compare_with(
            {matrix.name: (x.svd.S, radii) for matrix, x, radii, ok in matrices if ok}
        )
        return finite

    def take(self) -> dict[str, Any]:
        """Fields of the frame of a step."""
        given = self._readings.take()
        program = self._prepared(given)
        program.compute()
        if program.layout is not self._layout:
            self._layout = program.layout
            self._unpacking = Unpacking(self._asked, self._layout, self._k, is_now=True)
        assert self._unpacking is not None
        numbers = program.block.to("cpu", copy=True).numpy()
        self.finite = (numbers[self._layout.places["codes"]] >= 0).tolist()
        fields = self._unpacking.fields(numbers)
        tell_reasons(fields["matrices"], self._readings.reasons)
        svds = [x.svd for x in program.solved[: len(self._asked.matrices)]]
        changed, fields["overlap"] = self._changes.measure(svds, self._readings)
        self._changes.remember(self._readings)
        if changed:
            fields["matrices"] = {**fields["matrices"], **changed}
        reference = self._asked.reference
        fields["vectors"] = {}
        if reference is not None and reference.wants_final:
            fields["vectors"] = {
                matrix.name: reference.leading(svd)
                for matrix, svd in zip(self._asked.matrices, svds, strict=True)
            }
        if not self._asked.solver.in_place:
            # Results are elsewhere at the next step: nothing prepared for these is of use.
            self.forget()
        self._readings.forget()
        return fields

    def forget(self) -> None:
        """Let go of the program, as where the solver has loaded another state."""
        self._program, self._unpacking, self._layout = None, None, None

    def _prepared(self, given: list[Kept]) -> StepProgram:
        if self._program is None or not self._readings.stayed:
            self._program = StepProgram(self._asked, given, snapshot=False)
        return self._program
