"""Launches a kernel of the table on torch's current stream.

A test can put another launcher in the place of the driver (``installed``): the same adapters then
run on CPU tensors, with the kernels compiled for the host.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from spectral_kernels.cuda.table import KERNELS, Kernel

Argument = Tensor | int | float | None


@dataclass(frozen=True)
class Limits:
    """What a launch may ask of a device: shared memory of one block, and how many blocks run."""

    shared_bytes: int
    multiprocessors: int


class Launcher(Protocol):
    """Whatever runs a kernel: the driver, or a test's stand-in for it."""

    def limits(self) -> Limits:
        """Return the limits of the device that the next launch goes to."""

    def launch(
        self,
        kernel: Kernel,
        grid: int,
        block: int,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
    ) -> None:
        """Start ``kernel``; ``packed(kernel, arguments)`` are the bytes of its parameters."""


_installed: Launcher | None = None


@contextlib.contextmanager
def installed(launcher: Launcher) -> Iterator[None]:
    """Send every launch to ``launcher`` instead of the driver."""
    global _installed
    before, _installed = _installed, launcher
    try:
        yield
    finally:
        _installed = before


def packed(kernel: Kernel, arguments: tuple[Argument, ...]) -> bytes:
    """Return the kernel's struct of parameters: data pointers of tensors (0 for None), numbers."""
    values = [a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a for a in arguments]
    return struct.pack(f"<{kernel.fields}".replace("P", "Q"), *values)


def launch(name: str, grid: int, block: int, shared_bytes: int, *arguments: Argument) -> None:
    """Run the kernel ``name`` of the table; a grid of no blocks runs nothing.

    Args:
        name: a key of ``KERNELS``.
        grid: number of blocks.
        block: threads of a block, a multiple of 32.
        shared_bytes: dynamic shared memory of a block.
        arguments: one for each member of the kernel's struct. The caller keeps tensors alive
            and on the current device; nothing is checked here.
    """
    if grid > 0:
        _current().launch(KERNELS[name], grid, block, shared_bytes, arguments)


def limits() -> Limits:
    """Return the limits of the current device."""
    return _current().limits()


def _current() -> Launcher:
    if _installed is None:
        raise RuntimeError("no launcher")
    return _installed
