"""The one table of CUDA kernels: where each is, and what it is given."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from torch import Tensor

Argument = Tensor | int | float | None


@dataclass(frozen=True)
class Kernel:
    """A kernel's name, its file in csrc/cuda, and the members of its parameters in order.

    ``fields`` has one letter for each member of the struct, as the ``struct`` module writes them:
    "P" pointer, "q" int64_t, "d" double. A number repeats the letter behind it.
    """

    name: str
    source: str
    fields: str


@dataclass(frozen=True)
class Limits:
    """What a launch may ask of a device: shared memory of one block, and how many blocks run."""

    shared_bytes: int
    multiprocessors: int


def packed(kernel: Kernel, arguments: tuple[Argument, ...]) -> bytes:
    """Return the kernel's struct of parameters: data pointers of tensors (0 for None), numbers."""
    values = [a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a for a in arguments]
    return struct.pack(f"<{kernel.fields.replace('P', 'Q')}", *values)


# How many batches of spectra one launch of "summarize" takes.
SUMMARY_JOBS = 40

KERNELS = {
    kernel.name: kernel
    for kernel in (
        # jobs; for each: values, table, bounds, norms, errors, code, count, r, rtol
        Kernel("summarize", "summary.cu", "q" + "5P3qd" * SUMMARY_JOBS),
    )
}
