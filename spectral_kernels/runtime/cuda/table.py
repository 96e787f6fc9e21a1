"""The one table of CUDA kernels: where each is, and what it is given."""

from __future__ import annotations

import functools
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
    # Hundreds of entries where a launch takes many batches, and isinstance(x, Tensor) is slow.
    values = [
        a if type(a) is int or type(a) is float else 0 if a is None else a.data_ptr()  # type: ignore[union-attr]
        for a in arguments
    ]
    return _layout(kernel.fields).pack(*values)


@functools.cache
def _layout(fields: str) -> struct.Struct:
    return struct.Struct(f"<{fields.replace('P', 'Q')}")


# How many batches one launch takes, of the kernels that make values and of those that make vectors.
VALUES_JOBS = 40
SVD_JOBS = 40

KERNELS = {
    kernel.name: kernel
    for kernel in (
        # jobs, code, rows, n, rtol; for each: a, values, table, count, strides of batch, rows, n
        *(
            Kernel(f"bidiagonal_{x}", "bidiagonal.cu", "4qd" + "3P4q" * VALUES_JOBS)
            for x in (
                *("float_1", "float_2", "float_4", "float_8"),
                *("double_1", "double_2", "double_4", "double_8", "double_16"),
            )
        ),
        *(
            Kernel(f"gram_values_{x}", "gram_values.cu", "4qd" + "3P4q" * VALUES_JOBS)
            for x in (1, 2, 4, 6)
        ),
        # code, m, n, jobs; for each: a, Ut, S, Vh, batch, strides of batch, m, n
        *(
            Kernel(f"{x}_{side}", "jacobi_registers.cu", "4q" + "4P4q" * SVD_JOBS)
            for side in (8, 16, 32)
            for x in (
                *("svd_registers_f32", "svd_registers_f64"),
                *(("svdvals_registers_f32", "svdvals_registers_f64") if side < 32 else ()),
            )
        ),
        # the same and the leading dimensions of W and V
        *(
            Kernel(f"svd_shared_{x}", "jacobi_shared.cu", "4q" + "4P4q" * SVD_JOBS + "2q")
            for x in (
                *("f32_8x8", "f32_8x16", "f32_16x16", "f32_32x16"),
                *("f64_8x8", "f64_8x16", "f64_16x16", "f64_32x16"),
            )
        ),
    )
}
