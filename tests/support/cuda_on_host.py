"""The CUDA kernels on the host: compiled by g++ against tests/native/cuda_host.h.

``HostLauncher`` runs a launch in this process. ``SanitizedLauncher`` runs it in a program of its
own under ThreadSanitizer or AddressSanitizer, on copies of exactly the memory that the tensors
cover, so every adapter's tests can be repeated under them:

    with launcher.installed(HostLauncher()):
        values = cuda_values.svdvals([A])
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from spectral_kernels.runtime.cuda.table import Argument, Kernel, Limits, packed
from tests.support.cuda_build import COMPILER, ROOT, built

__all__ = ["COMPILER", "H100", "HostLauncher", "SanitizedLauncher", "built"]

# What an H100 offers.
H100 = Limits(shared_bytes=227 << 10, multiprocessors=132)


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.sk_host_launch.restype = ctypes.c_char_p
    library.sk_host_launch.argtypes = [ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_int64] * 4]
    return library


class HostLauncher:
    """Runs the kernels of the table in this process; ``launched`` has the names in order.

    ``source`` replaces the kernel's own file of csrc/cuda, for kernels that tests plant.
    """

    def __init__(self, source: Path | None = None, limits: Limits = H100) -> None:
        self.source = source
        self.launched: list[str] = []
        self._limits = limits

    def limits(self, device: torch.device) -> Limits:
        return self._limits

    def launch(
        self,
        kernel: Kernel,
        grid: int,
        block: int,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
    ) -> None:
        assert shared_bytes <= self._limits.shared_bytes, (kernel.name, shared_bytes)
        assert all(not isinstance(a, Tensor) or a.device.type == "cpu" for a in arguments)
        self.launched.append(kernel.name)
        self._run(kernel, (grid, block, shared_bytes), arguments)

    def _source(self, kernel: Kernel) -> Path:
        return self.source or ROOT / "csrc/cuda" / kernel.source

    def _run(
        self, kernel: Kernel, sizes: tuple[int, int, int], arguments: tuple[Argument, ...]
    ) -> None:
        params = packed(kernel, arguments)
        error = _library(built(self._source(kernel))).sk_host_launch(
            kernel.name.encode(), params, len(params), *sizes
        )
        if error is not None:
            raise RuntimeError(f"{kernel.name}: {error.decode()}")


class SanitizedLauncher(HostLauncher):
    """Runs each launch in a program of its own under ``sanitizer`` ("thread" or "address")."""

    def __init__(self, sanitizer: str, source: Path | None = None, limits: Limits = H100) -> None:
        super().__init__(source, limits)
        self.sanitizer = sanitizer

    def _run(
        self, kernel: Kernel, sizes: tuple[int, int, int], arguments: tuple[Argument, ...]
    ) -> None:
        program = built(self._source(kernel), self.sanitizer)
        memory = _merged([_extent(a) for a in arguments if isinstance(a, Tensor) and a.numel()])
        with tempfile.TemporaryDirectory() as folder:
            given, result = Path(folder, "launch"), Path(folder, "result")
            given.write_bytes(_described(kernel, sizes, arguments, memory))
            options = {"TSAN_OPTIONS": "exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}
            done = subprocess.run(
                _without_randomised_addresses([str(program), str(given), str(result)]),
                env=os.environ | options, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode != 0:
                raise RuntimeError(f"{kernel.name}, {self.sanitizer}: {done.stderr[-6000:]}")
            written = result.read_bytes()
        position = 0
        for start, end in memory:
            ctypes.memmove(start, written[position : position + end - start], end - start)
            position += end - start


def _without_randomised_addresses(command: list[str]) -> list[str]:
    # ThreadSanitizer of older compilers refuses address layouts that newer kernels choose.
    return ["setarch", "-R", *command] if _setarch() else command


@functools.cache
def _setarch() -> bool:
    """Whether it is there and allowed, which it need not be in a container."""
    if shutil.which("setarch") is None:
        return False
    return subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0


def _extent(x: Tensor) -> tuple[int, int]:
    """First byte of a tensor in memory and the byte behind its last element."""
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def _merged(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping extents as one, so that what is one buffer here is one there."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(extents):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _described(
    kernel: Kernel,
    sizes: tuple[int, int, int],
    arguments: tuple[Argument, ...],
    memory: list[tuple[int, int]],
) -> bytes:
    params, name = packed(kernel, arguments), kernel.name.encode()
    relocations = []
    for i, a in enumerate(arguments):
        if isinstance(a, Tensor) and a.numel():
            at = a.data_ptr()
            (k,) = (k for k, (start, end) in enumerate(memory) if start <= at < end)
            relocations += [8 * i, k, at - memory[k][0]]
    lengths = [end - start for start, end in memory]
    head = [*sizes, len(name), len(params), len(relocations) // 3, len(memory)]
    return b"".join(
        [
            struct.pack(f"<{len(head)}q", *head),
            name,
            params,
            struct.pack(f"<{len(relocations)}q", *relocations),
            struct.pack(f"<{len(lengths)}q", *lengths),
            *(ctypes.string_at(start, end - start) for start, end in memory),
        ]
    )
