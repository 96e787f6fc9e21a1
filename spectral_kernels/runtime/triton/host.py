"""Whether Triton kernels can run here, and what their launchers share. Imports without Triton.

Ragged lists of matrices reach a kernel as one table of 64-bit integers on the device: each row
tells where the data of one job is, as a distance in bytes from one base pointer, and its sizes. A
table costs one copy, whatever the number of tensors.
"""

from __future__ import annotations

import importlib.metadata
import os
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

REMEDY = "pip install spectral-kernels[triton]"
OLDEST = (3, 6)

# Compute capabilities whose tensor cores have their own memory (tcgen05): with Triton 3.6 to 3.8
# two products that are added to one accumulator in a loop come out wrong there.
_MISCOMPILED = (10, 11)

# Launch options that every kernel is compiled with: written out, since the default of fused
# multiply-adds changes between versions of Triton.
OPTIONS = {"enable_fp_fusion": True}

# Tables that CUDA graphs copy again at every replay: they stay as long as the process.
_captured: list[Tensor] = []


def interpreting() -> bool:
    """Whether TRITON_INTERPRET makes kernels run in Python, on the tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "yes", "on", "y"}


def devices() -> frozenset[str]:
    """Return the kinds of devices whose tensors the kernels take."""
    return frozenset({"cuda", "cpu"} if interpreting() else {"cuda"})


def refusal() -> str | None:
    """Return why Triton kernels cannot run, with the remedy, or None where they can.

    Asks the package's metadata: importing Triton takes half a second.
    """
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return f"Triton is not installed; {REMEDY}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is older than {'.'.join(map(str, OLDEST))}; {REMEDY}"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return (
            "torch finds no CUDA device; TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, "
            "for tests"
        )
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than sm_80, the oldest that is tested"
    if capability[0] in _MISCOMPILED:
        return (
            f"Triton miscompiles sums of several products on the tensor cores of "
            f"{torch.cuda.get_device_name()} (triton-lang/triton issue 10821)"
        )
    return None


def launch(kernel: Any, grid: int | tuple[int, ...], beside: Tensor, **arguments: Any) -> None:
    """Start the programs of a kernel on the current stream of the device of ``beside``.

    Triton launches on the current device, wherever the tensors are. What grows with the data is
    for the first axis of a grid: the others end at 65,535.
    """
    shape = (grid,) if isinstance(grid, int) else grid
    if all(shape):
        with torch.cuda.device(beside.get_device()):
            kernel[shape](**{**OPTIONS, **arguments})


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n >= 1."""
    return 1 << max(n - 1, 0).bit_length()


def bits(value: float) -> int:
    """Return the bits of a float64 as the int64 that a table holds."""
    number: int = struct.unpack("q", struct.pack("d", value))[0]
    return number


def unrolled(
    jobs: Sequence[Sequence[int]], counts: Sequence[int], steps: Sequence[Sequence[int]]
) -> Tensor:
    """Return one row for each matrix of batches: ``jobs[i] + b * steps[i]`` for b < counts[i].

    int64 (sum of counts, fields), on the CPU.
    """
    rows, step = torch.tensor(jobs), torch.tensor(steps)
    repeats = torch.tensor(counts)
    owner = torch.repeat_interleave(torch.arange(len(counts)), repeats)
    index = torch.arange(len(owner)) - (repeats.cumsum(0) - repeats)[owner]
    return rows[owner] + index[:, None] * step[owner]


def batch_offsets(A: Tensor) -> Tensor:
    """Return where each matrix of ``A`` (..., m, n) begins, in bytes from the first: (count,)."""
    offsets = torch.zeros(1, dtype=torch.int64)
    for size, stride in zip(A.shape[:-2], A.stride()[:-2], strict=True):
        offsets = (offsets[:, None] + stride * torch.arange(size)).flatten()
    return offsets * A.element_size()


def on_device(table: Tensor, device: torch.device) -> Tensor:
    """Return an int64 table on ``device``, copied without waiting for the device."""
    if device.type == "cpu":
        return table
    pinned = table.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _captured.append(pinned)
    return pinned.to(device, non_blocking=True)
