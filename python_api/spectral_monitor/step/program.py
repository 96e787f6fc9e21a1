"""The step of a monitor as a recorded program.

    [snapshot] -> solver -> ranks with bounds, alignment, clusters, agreement -> block of numbers

It is the same on a CPU and on a GPU, and recorded once for matrices that stay where they are. On a
CPU, where every matrix is tracked as a whole, a run is one native call; on a GPU no number is read
on the way, so nothing waits for the device and a CUDA graph may record it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from spectral_monitor.model.matrix import Kept, tensors_of, with_tensors
from spectral_monitor.step.derived import SCALARS, Asked, Derived, Layout
from spectral_monitor.step.solvers import Solved
from torch import Tensor

from spectral_kernels.runtime.program.op import Program
from spectral_kernels.snapshot.op import PreparedSnapshot


class StepProgram:
    """A solver and what is derived of its results, as one program on the CPU or on a device.

    Args:
        asked: what to compute.
        given: the matrices and parts as they are now.
        snapshot: whether `read` copies them, so that they may change while the program runs; else
            they are read where they are.
    """

    def __init__(self, asked: Asked, given: Sequence[Kept], *, snapshot: bool) -> None:
        self._asked, self._given = asked, list(given)
        self._snapshot: PreparedSnapshot | None = None
        tensors = _flat(given)
        if snapshot:
            self._snapshot = PreparedSnapshot(tensors)
            self._given = with_tensors(given, self._snapshot.run().matrices)
        self._scalars = tensors[0].new_zeros(SCALARS, dtype=torch.float64)
        self._solved: list[Solved] = []
        self._derived: Derived | None = None
        # An update that needs no Python, and all of the program.
        self._update: Any = None
        self._program: Program | None = None

    def fits(self, given: Sequence[Kept]) -> bool:
        """Whether the snapshot reads the memory of these matrices."""
        assert self._snapshot is not None
        return self._snapshot.fits(_flat(given))

    def read(self, scalars: Sequence[Tensor]) -> None:
        """Take a snapshot of the matrices, and of at most ``SCALARS`` numbers."""
        for i, value in enumerate(scalars):
            self._scalars[i].copy_(value.detach().reshape(()))
        if self._snapshot is not None:
            self._snapshot.run()

    def solve(self, which: Sequence[int]) -> None:
        """Solve these matrices anew, from the snapshot. Waits for the device."""
        solver: Any = self._asked.solver
        solver.resolve(which)

    def compute(self) -> None:
        """Fill the block."""
        if self._program is not None:
            self._program.run()
            if self._update.settle():
                self._record()
            return
        solved = self._asked.solver.update(self._given)
        if self._derived is None or not self._derived.fits(solved):
            self._derived = Derived(self._asked, solved, self._scalars)
        self._derived.run()
        self._solved = solved
        self._update = self._asked.solver.prepared()
        if self._update is not None:
            self._record()

    def _record(self) -> None:
        assert self._derived is not None
        entries = [self._update, *self._derived.entries]
        self._program = Program(entries, self._scalars.device.type)

    @property
    def solved(self) -> list[Solved]:
        """The results of the solver."""
        return self._solved

    @property
    def block(self) -> Tensor:
        """(length,) float64: the numbers of the step, once computed."""
        assert self._derived is not None
        return self._derived.block

    @property
    def layout(self) -> Layout:
        """Where the numbers are in the block; another object where results moved in memory."""
        assert self._derived is not None
        return self._derived.layout


def _flat(given: Sequence[Kept]) -> list[Tensor]:
    return [x for kept in given for x in tensors_of(kept)]
