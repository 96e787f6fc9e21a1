"""Runs a program step by step on streams that the host does not wait for.

    training stream   ... optimizer step | snapshot | next training step ...
    second stream                          solve anew, program (one graph), copy to the host

The snapshot waits for the program of the step before, which reads the same memory: where a
measurement takes longer than the training between two of them, training is held up, on the device
alone. In Python a step is three launches: the snapshot, the graph, the copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from spectral_monitor.device.streams import Mark, Streams
from spectral_monitor.step.joined_arrays import Array
from torch import Tensor


class Work(Protocol):
    """What a runner runs, see `spectral_monitor.step.program.StepProgram`."""

    @property
    def block(self) -> Tensor:
        """(length,) float64: the results."""
        ...

    def read(self, scalars: Sequence[Tensor]) -> None:
        """Copy the matrices that the results are computed from into memory of the program."""
        ...

    def solve(self, which: Sequence[int]) -> None:
        """Solve these matrices anew; may wait for the device."""
        ...

    def compute(self) -> None:
        """Fill the block: the same launches on the same memory every time."""
        ...


class Reading:
    """The numbers of one step, here or on their way.

    Args:
        slot: the host memory they land in, and ``free``: where it goes when they are out of it.
        begun, taken: around the snapshot, on the training stream.
        started, done: around the rest, on the second one.
    """

    def __init__(
        self, slot: Tensor, free: list[Tensor], begun: Mark, taken: Mark, started: Mark, done: Mark
    ) -> None:
        self._slot, self._free = slot, free
        self._marks = (begun, taken, started, done)
        self._numbers: Array | None = None

    @property
    def arrived(self) -> bool:
        """Whether the numbers are on the host."""
        return self._numbers is not None or self._marks[3].arrived()

    def numbers(self) -> Array:
        """The block of the program; waits for it where it has not arrived."""
        if self._numbers is None:
            self._marks[3].wait()
            self._numbers = self._slot.numpy().copy()
            self._free.append(self._slot)
        return self._numbers

    def seconds(self) -> float:
        """Time that the device worked for this step, on either stream; waits like `numbers`.

        Where training runs at the same time, a part of it costs training nothing.
        """
        self.numbers()
        begun, taken, started, done = self._marks
        return taken.seconds_since(begun) + done.seconds_since(started)


class Runner:
    """Issues the steps of a program.

    The first one runs launch by launch, which loads and tunes what has to be; the second one
    records the program, from where on it is one launch. A program that cannot be recorded goes on
    launch by launch, and `refusal` says why.

    Args:
        program: see `Work`.
        streams: where it runs.
        refusal: why the program is not to be recorded, where that is known before.
    """

    def __init__(self, program: Work, streams: Streams, refusal: str | None = None) -> None:
        self._program, self._streams = program, streams
        self._launch: Callable[[], None] = program.compute
        self._steps = 0
        self._done: Mark | None = None
        # A ring that grows where the device is far behind: reading makes room, waiting for it would
        # hold up training.
        self._free: list[Tensor] = []
        self.refusal = refusal

    def step(self, scalars: Sequence[Tensor], anew: Sequence[int]) -> Reading:
        """Issue a step; ``anew``: matrices to solve anew before."""
        streams = self._streams
        if self._steps == 1 and self.refusal is None:
            self._launch = self._recorded()
        self._steps += 1
        if self._done is not None:
            streams.follow(self._done)
        begun = streams.mark()
        self._program.read(scalars)
        taken = streams.mark()
        with streams.aside():
            streams.follow(taken)
            started = streams.mark()
            if anew:
                self._program.solve(anew)
            self._launch()
            slot = self._free.pop() if self._free else self._landing()
            slot.copy_(self._program.block, non_blocking=True)
            self._done = streams.mark()
        return Reading(slot, self._free, begun, taken, started, self._done)

    def wait(self) -> None:
        """Return when all that was issued is done."""
        if self._done is not None:
            self._done.wait()

    def __del__(self) -> None:
        # The program's memory goes back to training with it, which would be given memory that the
        # second stream still writes to.
        with contextlib.suppress(Exception):
            self.wait()

    def _recorded(self) -> Callable[[], None]:
        try:
            return self._streams.recorded(self._program.compute)
        except Exception as error:
            self.refusal = f"{type(error).__name__}: {error}"
            return self._program.compute

    def _landing(self) -> Tensor:
        return self._streams.landing(len(self._program.block))
