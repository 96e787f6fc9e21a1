"""The one table of CUDA kernels: where each is and what it is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """A kernel's name, its file in csrc/cuda, and the members of its parameters in order.

    ``fields`` has one letter for each member of the struct, as the ``struct`` module writes them:
    "P" pointer, "q" int64_t, "d" double. A number repeats the letter behind it.
    """

    name: str
    source: str
    fields: str


KERNELS = {
    kernel.name: kernel
    for kernel in (
        # values, table, code, count, r, rtol
        Kernel("summarize", "summary.cu", "PPqqqd"),
    )
}
