"""The monitor's step on a GPU: issued, not waited for.

A matrix whose bound turns out too large is reported with that bound, and solved anew at a later
step, when its numbers have arrived. That solution may wait for the device, and so do steps that
cannot be taken here (`device.path`), which are the monitor's own. Parameters that are
somewhere else than before (`spectral_monitor.device.places`) make a new program.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from spectral_monitor.cadence import Cadence
from spectral_monitor.device.clock import DeviceClock
from spectral_monitor.device.late_numbers import LateNumbers
from spectral_monitor.device.path import never, not_now, not_these, unrecorded
from spectral_monitor.device.places import Places
from spectral_monitor.device.runner import Reading, Runner
from spectral_monitor.device.streams import CudaStreams, Mark, Streams
from spectral_monitor.model.matrix import Kept, Matrix, UnreadableMatrixError, tensors_of
from spectral_monitor.step.comparisons import Comparisons
from spectral_monitor.step.derived import SCALARS, Asked
from spectral_monitor.step.program import StepProgram
from spectral_monitor.step.readings import by_reason, not_readable
from spectral_monitor.step.tracked_solver import TrackedSolver
from spectral_monitor.step.unpacking import Unpacking
from torch import Tensor

from spectral_kernels.runtime.numerics import result_dtype


class _Prepared(NamedTuple):
    program: StepProgram
    runner: Runner


class DeviceStep:
    """Takes the steps of a monitor that need not be waited for.

    Args:
        asked: what the monitor wants to know, with its solver, whose vectors are used and kept up
            to date.
        parts: see `spectral_monitor.step.solvers.Solver`.
        comparisons: the monitor's.
        k: how many vectors of each matrix take part.
        cadence: is told what measurements cost, when that is known.
        kind: of device that takes steps, and ``streams``: makes those of one device.
    """

    def __init__(
        self,
        asked: Asked,
        parts: Sequence[Matrix],
        comparisons: Comparisons,
        k: int,
        cadence: Cadence,
        *,
        kind: str = "cuda",
        streams: Callable[[torch.device], Streams] = CudaStreams,
    ) -> None:
        self._asked, self._matrices = asked, asked.matrices
        self._measured = [*asked.matrices, *parts]
        self._k, self._cadence, self._kind = k, cadence, kind
        # One second stream a device: memory that was used on one is not free for another.
        self._streams = cache(streams)
        solver = asked.solver
        self._never = never(solver, comparisons)
        self._unrecorded = unrecorded(asked.matrices)
        # None where no step is ever taken.
        self._solver = solver if isinstance(solver, TrackedSolver) and not self._never else None
        self._started = [False] * len(asked.matrices)
        self._prepared: _Prepared | None = None
        self._unpacking: Unpacking | None = None
        self._on_their_way: deque[tuple[int, Reading]] = deque()
        self._steps = 0
        self._lost: set[int] = set()
        self._solved_at = [-1] * len(self._measured)
        self._places = Places(self._measured)
        self._clock = DeviceClock(cadence)

    def started(self, finite: Sequence[bool]) -> None:
        """A step of the monitor's own found these matrices finite: they have vectors now."""
        if not all(self._started):
            self._started = [a or b for a, b in zip(self._started, finite, strict=True)]

    def keeps(self, scalars: Mapping[str, float | Tensor]) -> set[str]:
        """The caller's numbers that stay on the device, if the step is taken."""
        if self._solver is None:
            return set()
        late = [n for n, x in scalars.items() if isinstance(x, Tensor) and self._is_late(x)]
        return set(late[:SCALARS])

    def take(self, scalars: Mapping[str, float | Tensor]) -> LateNumbers | None:
        """Issue a step, or return None where it is not taken here.

        What the monitor keeps is then as if all steps so far had been its own.

        Args:
            scalars: the caller's numbers; tensors are those that `keeps` told.
        """
        given = self._given()
        if given is None:
            self.leave()
            return None
        self.collect()
        # A program that could not be recorded runs the trackers' own code, which solves anew.
        is_eager = self._prepared is not None and self._prepared.runner.refusal is not None
        anew = [] if is_eager else sorted(self._lost)
        late = [value for value in scalars.values() if isinstance(value, Tensor)]
        with torch.cuda.device_of(tensors_of(given[0])[0]):  # type: ignore[no-untyped-call]
            prepared = self._prepare(self._places.settle(given))
            reading = prepared.runner.step(late, anew)
        self._lost.clear()
        for i in anew:
            self._solved_at[i] = self._steps
        if self._unpacking is None:
            layout = prepared.program.layout
            self._unpacking = Unpacking(self._asked, layout, self._k, is_now=False)
        self._on_their_way.append((self._steps, reading))
        self._steps += 1
        on_host = {n: None if isinstance(x, Tensor) else x for n, x in scalars.items()}
        return LateNumbers(reading, self._unpacking, anew, on_host)

    def enter(self, number: int) -> None:
        """The training step before ``number`` is issued; where a budget asks for its time, note it.

        To be called at every step, and `left` after it, whether it is measured or not.
        """
        if self._keeps_time():
            self._clock.enter(number, self._mark())

    def left(self, number: int) -> None:
        """The next training step comes."""
        if self._keeps_time():
            self._clock.leave(number, self._mark())

    def interrupt(self) -> None:
        """The time until the next step is not that of training."""
        self._clock.interrupt()

    def collect(self) -> None:
        """Take in what has arrived: which matrices were lost, and what steps cost."""
        while self._on_their_way and self._on_their_way[0][1].arrived:
            step, reading = self._on_their_way.popleft()
            assert self._unpacking is not None
            lost = self._unpacking.lost(reading.numbers())
            # A step from before a solution does not know of it.
            self._lost.update(i for i in lost if step >= self._solved_at[i])
            self._cadence.charge(reading.seconds())

    def wait(self) -> None:
        """Return when all that was issued is done, with what the monitor keeps up to date."""
        if self._prepared is not None:
            self._prepared.runner.wait()
            self.collect()

    def leave(self) -> None:
        """Let go of the program: the next step is the monitor's own, or has a new one."""
        self.wait()
        self._prepared, self._unpacking = None, None
        self._lost.clear()

    def forget(self) -> None:
        """Start anew: the solver and the reference have loaded a state, maybe without vectors."""
        self.leave()
        self._started = [False] * len(self._matrices)

    @property
    def refusal(self) -> str | None:
        """Why the next step is not taken here."""
        if self._never:
            return self._never
        unreadable = not_readable(self._matrices)
        if unreadable:
            return by_reason(unreadable)
        return self._refused([matrix.read() for matrix in self._measured])

    @property
    def described(self) -> str:
        """One line for `explain`."""
        reason = self.refusal
        if reason is not None:
            return f"a step waits for its numbers: {reason}"
        if self._unrecorded is not None:
            return f"a step is issued to the device, and the host waits in it: {self._unrecorded}"
        path = "a step is issued to the device and not waited for"
        runner = None if self._prepared is None else self._prepared.runner
        if runner is not None and runner.refusal is not None:
            return f"{path}, launch by launch: it could not be recorded ({runner.refusal})"
        return f"{path}, as one graph from the second on"

    def memory(self) -> dict[str, dict[str, int]]:
        """``{"packed copy": {matrix: bytes}}``; of steps that are not taken here nothing."""
        if self._solver is None or not_readable(self._matrices):
            return {}
        given = [matrix.read() for matrix in self._measured]
        if not_these(given, self._solver, self._kind):
            return {}
        sizes = {
            matrix.name: sum(x.numel() * result_dtype(x.dtype).itemsize for x in tensors_of(kept))
            for matrix, kept in zip(self._measured, given, strict=True)
        }
        return {"packed copy": sizes}

    def _keeps_time(self) -> bool:
        return self._cadence.overhead is not None and self._is_here()

    def _mark(self) -> Mark:
        return self._streams(self._matrices[0].device).mark()

    def _is_late(self, x: Tensor) -> bool:
        return x.device.type == self._kind and x.numel() == 1 and not x.is_complex()

    def _is_here(self) -> bool:
        return self._matrices[0].device.type == self._kind

    def _given(self) -> list[Kept] | None:
        """The matrices where they are now; None where the step is not taken here."""
        if self._solver is None or not self._is_here():
            return None
        try:
            given = [matrix.read() for matrix in self._measured]
        except UnreadableMatrixError:
            return None
        return None if self._refused(given) else given

    def _refused(self, given: Sequence[Kept]) -> str | None:
        assert self._solver is not None
        reason = not_these(given, self._solver, self._kind)
        return reason or not_now(self._matrices, self._started)

    def _prepare(self, settled: Sequence[Kept]) -> _Prepared:
        """The program for matrices in these places."""
        if self._prepared is not None:
            if self._prepared.program.fits(settled):
                return self._prepared
            self.leave()
        program = StepProgram(self._asked, settled, snapshot=True)
        streams = self._streams(tensors_of(settled[0])[0].device)
        runner = Runner(program, streams, self._unrecorded)
        self._prepared = _Prepared(program, runner)
        return self._prepared
