"""Runs a program step by step on streams that the host does not wait for.

    training stream   ... optimizer step | snapshot | next training step ...
    second stream                          solve anew, program (one graph), copy to the host

The snapshot waits for the program of the step before, which reads the same memory: where a
measurement takes longer than the training between two of them, training is held up, on the device
alone. In Python a step is three launches: the snapshot, the graph, the copy.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from python_api.device_streams import Mark, Streams
from python_api.views import Array

__all__ = ["Reading", "Runner", "Work"]


class Work(Protocol):
    """What a runner runs, see `python_api.device_program.Program`."""

    @property
    def block(self) -> Tensor:
        """(length,) float64: the results."""
        ...

    def read(self, scalars: Sequence[Tensor]) -> None:
        """Take what is computed from into memory of its own."""
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
        slot: the host memory they land in.
        begun, taken: around the snapshot, on the training stream.
        started, done: around the rest, on the second one.
    """

    def __init__(self, slot: Tensor, begun: Mark, taken: Mark, started: Mark, done: Mark) -> None:
        self._slot: Tensor | None = slot
        self._marks = (begun, taken, started, done)
        self._numbers: Array | None = None

    @property
    def arrived(self) -> bool:
        """Whether they are here."""
        return self._numbers is not None or self._marks[3].arrived()

    @property
    def is_kept(self) -> bool:
        """Whether they are in memory of their own, and the slot may be used again."""
        return self._slot is None

    def numbers(self) -> Array:
        """The block of the program; waits for it where it has not arrived."""
        if self._numbers is None:
            assert self._slot is not None
            self._marks[3].wait()
            self._numbers, self._slot = self._slot.numpy().copy(), None
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
    """

    def __init__(self, program: Work, streams: Streams) -> None:
        self._program, self._streams = program, streams
        self._launch: Callable[[], None] = program.compute
        self._steps = 0
        self._done: Mark | None = None
        self._slots: list[tuple[Tensor, Callable[[], Reading | None]]] = []
        self.refusal: str | None = None

    def step(self, scalars: Sequence[Tensor], anew: Sequence[int]) -> Reading:
        """Issue a step; ``anew``: matrices to solve anew before."""
        streams = self._streams
        if self._steps == 1:
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
            number, slot = self._free_slot()
            slot.copy_(self._program.block, non_blocking=True)
            self._done = streams.mark()
        reading = Reading(slot, begun, taken, started, self._done)
        self._slots[number] = slot, weakref.ref(reading)
        return reading

    def wait(self) -> None:
        """Return when all that was issued is done."""
        if self._done is not None:
            self._done.wait()

    @property
    def slots(self) -> int:
        """How many steps' results have room on the host, as many as were ever on their way."""
        return len(self._slots)

    def _recorded(self) -> Callable[[], None]:
        try:
            return self._streams.recorded(self._program.compute)
        except Exception as error:
            self.refusal = f"{type(error).__name__}: {error}"
            return self._program.compute

    def _free_slot(self) -> tuple[int, Tensor]:
        """Host memory that nobody waits for; more of it where the device is that far behind.

        A reading that nobody holds any more may be overwritten before it arrives: both copies are
        issued to the same stream.
        """
        for number, (slot, owner) in enumerate(self._slots):
            reading = owner()
            if reading is not None and not reading.is_kept and reading.arrived:
                reading.numbers()
            if reading is None or reading.is_kept:
                return number, slot
        slot = self._streams.landing(len(self._program.block))
        self._slots.append((slot, lambda: None))
        return len(self._slots) - 1, slot
