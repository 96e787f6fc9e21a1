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
        # a, values, table, code, rows, n, stride_batch, stride_rows, stride_n, rtol
        *(
            Kernel(f"bidiagonal_{x}", "bidiagonal.cu", "PPPqqqqqqd")
            for x in (
                *("float_1", "float_2", "float_4", "float_8"),
                *("double_1", "double_2", "double_4", "double_8", "double_16"),
            )
        ),
        # gram, values, table, n, rtol
        *(Kernel(f"gram_values_{x}", "gram_values.cu", "PPPqd") for x in (1, 2, 4, 6)),
    )
}
