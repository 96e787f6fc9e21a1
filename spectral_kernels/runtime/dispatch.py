"""Which backend runs: an ordered table, and a reason for every refusal.

The environment variable ``SPECTRAL_KERNELS_BACKEND`` names the backend to use and turns a silent
second choice into an error.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from spectral_kernels.runtime import forks
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.runtime.triton import host

ENVIRONMENT = "SPECTRAL_KERNELS_BACKEND"

COMPILE_REMEDY = (
    "install a wheel, or build in place with a C++17 compiler: pip install -e . "
    "(--no-build-isolation where pybind11 and setuptools are installed)"
)


@dataclass(frozen=True)
class Backend:
    """A row of the table: who may run on which device, and why not where it may not."""

    name: str
    module: str
    devices: frozenset[str] | Callable[[], frozenset[str]] | None
    refusal: Callable[[], str | None]


def compiled_refusal() -> str | None:
    """Return why the compiled CPU module cannot run, or None where it can."""
    try:
        importlib.import_module("spectral_kernels._C")
    except ImportError as error:
        return f"the compiled module spectral_kernels._C is missing ({error}); {COMPILE_REMEDY}"
    return None


# First that can, runs.
BACKENDS = (
    Backend("cpu", "cpu", frozenset({"cpu"}), compiled_refusal),
    Backend("cuda", "cuda_backend", frozenset({"cuda"}), launcher.refusal),
    # Interpreted kernels run on CPU tensors too, for tests: the compiled ones come first.
    Backend("triton", "triton_backend", host.devices, host.refusal),
    Backend("torch", "torch_backend", None, lambda: None),
)

# The backends that each operation has. usv_matmul is a chain of products, which torch's own
# BLAS does best on the CPU.
OPERATIONS = {
    "svd": ("cpu", "cuda", "torch"),
    "rsvd": ("cpu", "triton", "torch"),
    "rank": ("cpu", "triton", "torch"),
    "alignment": ("cpu", "triton", "torch"),
    "snapshot": ("cpu", "triton", "torch"),
    "tracking.whole": ("cpu", "triton", "torch"),
    "tracking.leading": ("cpu", "triton", "torch"),
    "factored": ("triton", "torch"),
    "entry.core": ("cpu", "torch"),
    "products": ("triton", "torch"),
    "runtime.program": ("cpu", "torch"),
}

_chosen: dict[tuple[str, str, str | None], ModuleType] = {}


def forced() -> str | None:
    """Return the backend that the environment asks for, None where it asks for nothing.

    Raises:
        ValueError: the name is not one of the table; the message lists the valid ones.
    """
    name = os.environ.get(ENVIRONMENT) or None
    if name is not None and name not in {b.name for b in BACKENDS}:
        valid = ", ".join(repr(b.name) for b in BACKENDS)
        raise ValueError(f"{ENVIRONMENT}={name!r} names no backend; expected one of {valid}")
    return name


def backend(operation: str, device: str) -> ModuleType:
    """Return the module of ``operation`` ("svd", "rank", ...) that runs on ``device`` ("cpu").

    Raises:
        RuntimeError: the backend that the environment asks for cannot run here, with the reason.
        ValueError: the environment names an unknown backend.
    """
    key = (operation, device, os.environ.get(ENVIRONMENT))
    module = _chosen.get(key)
    if module is None:
        module = _chosen[key] = _choose(operation, device)
    return module


def _choose(operation: str, device: str) -> ModuleType:
    forks.note_use()
    offered = OPERATIONS[operation]
    asked = forced()
    refusals = []
    for row in BACKENDS:
        if row.name not in offered or (asked in offered and row.name != asked):
            continue
        reason = refusal(row, device)
        if reason is None:
            return importlib.import_module(f"spectral_kernels.{operation}.{row.module}")
        refusals.append(f"{row.name}: {reason}")
    raise RuntimeError(
        f"no backend can run {operation} on {device!r}"
        + (f" with {ENVIRONMENT}={asked}" if asked else "")
        + "; "
        + "; ".join(refusals)
    )


def refusal(row: Backend, device: str) -> str | None:
    """Return why ``row`` cannot run on ``device``, or None where it can."""
    devices = row.devices() if callable(row.devices) else row.devices
    if devices is not None and device not in devices:
        return f"runs on {', '.join(sorted(devices))}, not on {device}"
    return row.refusal()
