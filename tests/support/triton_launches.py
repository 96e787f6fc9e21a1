"""What launchers pass to Triton, taken down instead of launched: specialisations and grids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton.runtime.jit import JITFunction

from tests.support.triton_variants import Variant

_TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


class Launch(NamedTuple):
    """One launch: the specialisation that Triton would compile for its arguments."""

    grid: tuple[int, ...]
    variant: Variant


def specialisation(kernel: Any, given: dict[str, Any]) -> Variant:
    """Return what Triton makes of arguments: one and None are constants, multiples of 16 known."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned = []
    options = {name: value for name, value in given.items() if name not in kernel.arg_names}
    for parameter in kernel.params:
        name, value = parameter.name, given[parameter.name]
        number = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (number and value == 1):
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            aligned += [name] if value.data_ptr() % 16 == 0 else []
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned += [name] if number and value % 16 == 0 else []
    return Variant(kernel.__name__, kernel, signature, constants, options, tuple(aligned))


@contextmanager
def taken_down() -> Iterator[list[Launch]]:
    """Inside, kernels are not launched: results are whatever the memory holds."""
    launches: list[Launch] = []

    def run(kernel: Any, *, grid: tuple[int, ...], warmup: bool, **given: Any) -> None:
        assert not warmup
        launches.append(Launch(grid, specialisation(kernel, given)))

    with mock.patch.object(JITFunction, "run", run):
        yield launches
