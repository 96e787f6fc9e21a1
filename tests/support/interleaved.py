"""Programs of one launch at the same time: threads of which one runs, changed at every access.

Triton's interpreter runs one program after the other, so a program that waits for another finds
everything done, and one that forgets to wait does too. Here every program of a launch is a thread,
and before each load, store and atomic operation the next to run is drawn by chance.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime import interpreter

ACCESSES = ("create_masked_load", "create_masked_store", "create_atomic_rmw")


class Schedule:
    """Runs functions by turns. What one of them raises, ``run`` raises."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.turns: dict[int, threading.Semaphore] = {}
        self.finished = threading.Semaphore(0)
        self.errors: list[BaseException] = []
        self.own = threading.local()

    def run(self, programs: list[Callable[[], None]]) -> None:
        self.turns = {i: threading.Semaphore(0) for i in range(len(programs))}
        threads = [
            threading.Thread(target=self._program, args=(i, program), daemon=True)
            for i, program in enumerate(programs)
        ]
        for thread in threads:
            thread.start()
        self._next()
        self.finished.acquire()
        if self.errors:
            raise self.errors[0]

    def pause(self) -> None:
        """Let chance say who goes on; no program of a schedule goes on at once."""
        index = getattr(self.own, "index", None)
        if index is not None:
            self._next()
            self.turns[index].acquire()

    def _program(self, index: int, program: Callable[[], None]) -> None:
        self.own.index = index
        self.turns[index].acquire()
        try:
            program()
        except BaseException as error:
            self.errors.append(error)
        del self.turns[index]
        self._next()

    def _next(self) -> None:
        if self.turns and not self.errors:
            self.turns[self.random.choice(list(self.turns))].release()
        else:
            self.finished.release()


class Interleaved:
    """A kernel that reads no program id, its programs run by a schedule."""

    def __init__(self, kernel: Any, seed: int) -> None:
        self.kernel = kernel
        self.seed = seed
        self.launches = 0

    def __getitem__(self, grid: tuple[int]) -> Any:
        program = self.kernel.rewrite()

        def run(arguments: dict[str, Any]) -> tuple[int]:
            self.launches += 1
            schedule = Schedule(self.seed)
            with pausing(schedule):
                schedule.run([lambda: program(**arguments)] * grid[0])
            # Nothing is left for the interpreter's own loop.
            return (0,)

        return self.kernel[run]


@contextmanager
def pausing(schedule: Schedule) -> Iterator[None]:
    """Pause before every access to memory."""
    builder = interpreter.InterpreterBuilder
    before = {name: getattr(builder, name) for name in ACCESSES}

    def paused(access: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*args: Any) -> Any:
            schedule.pause()
            return access(*args)

        return replaced

    for name, access in before.items():
        setattr(builder, name, paused(access))
    try:
        yield
    finally:
        for name, access in before.items():
            setattr(builder, name, access)
