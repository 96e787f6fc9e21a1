"""Launches a kernel of the table on torch's current stream.

A test can put another launcher in the place of the driver's (``installed``): the same adapters
then run on CPU tensors, with the kernels compiled for the host.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Protocol

import torch

from spectral_kernels.runtime.cuda import image
from spectral_kernels.runtime.cuda.driver import driver
from spectral_kernels.runtime.cuda.on_device import DeviceLauncher
from spectral_kernels.runtime.cuda.table import KERNELS, Argument, Kernel, Limits

# What the kernels are compiled for at least.
LEAST_CAPABILITY = (8, 0)


class Launcher(Protocol):
    """An object that runs kernels: the driver, or a test's stand-in for it."""

    def limits(self, device: torch.device) -> Limits:
        """Return the limits of launches with tensors of this device."""

    def launch(
        self,
        kernel: Kernel,
        grid: int,
        block: int,
        shared_bytes: int,
        arguments: tuple[Argument, ...],
    ) -> None:
        """Start ``kernel``; ``table.packed`` makes the bytes of its parameters."""


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


def launch(name: str, grid: int, block: int, shared_bytes: int, *arguments: Argument) -> None:
    """Run the kernel ``name`` of the table; a grid of no blocks runs nothing.

    Args:
        name: a key of ``KERNELS``.
        grid: number of blocks.
        block: threads of a block, a multiple of 32.
        shared_bytes: dynamic shared memory of a block.
        arguments: one for each member of the kernel's struct, at least one of them a tensor. The
            caller keeps tensors alive and on one device; nothing is checked here.

    Raises:
        RuntimeError: the device refuses, with the driver's words; there is no driver or no code.
    """
    if grid <= 0:
        return
    try:
        _current().launch(KERNELS[name], grid, block, shared_bytes, arguments)
    except RuntimeError as error:
        asked = f"{grid} blocks of {block} threads with {shared_bytes} bytes of shared memory"
        raise RuntimeError(f"CUDA kernel {name!r}, {asked}: {error}") from error


def limits(device: torch.device) -> Limits:
    """Return the limits of launches with tensors of ``device``."""
    return _current().limits(device)


def refusal() -> str | None:
    """Return why CUDA kernels cannot run, with the remedy, or None where they can."""
    return None if _installed is not None else _refusal()


def _current() -> Launcher:
    return _installed if _installed is not None else _of_devices()


@functools.cache
def _of_devices() -> DeviceLauncher:
    return DeviceLauncher(driver())


@functools.cache
def _refusal() -> str | None:
    if torch.version.cuda is None:
        return "this torch is built without CUDA; install a CUDA build (pytorch.org/get-started)"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; check the driver: nvidia-smi"
    try:
        capability = torch.cuda.get_device_capability()
    except RuntimeError as error:
        # A driver too old, a device that is taken, a process forked from one that uses CUDA.
        reason = str(error).partition("\n")[0].rstrip(".")
        return f"torch cannot use its CUDA device ({reason}); check the driver: nvidia-smi"
    if capability < LEAST_CAPABILITY:
        have, need = (f"{major}.{minor}" for major, minor in (capability, LEAST_CAPABILITY))
        return f"the device has compute capability {have}; the kernels need {need} or newer"
    try:
        driver()
    except RuntimeError as error:
        return f"{error}; check the driver: nvidia-smi"
    return image.refusal()
