"""Which backends are there, and for each absent one the reason and the remedy."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from spectral_kernels.runtime import dispatch, forks
from spectral_kernels.runtime.cuda import image, launcher
from spectral_kernels.runtime.triton import triton_runtime


@dataclass(frozen=True)
class Capability:
    """One row: a backend or an array library, whether it is usable, and what to do if not."""

    name: str
    available: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Capabilities:
    """What ``capabilities()`` found. ``print`` shows a table; ``rows`` and ``[name]`` the facts."""

    rows: tuple[Capability, ...]
    forced: str | None

    def __getitem__(self, name: str) -> Capability:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}; expected one of {', '.join(row.name for row in self.rows)}")

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = []
        for row in self.rows:
            lines.append(
                f"{row.name:<{width}}  {'yes' if row.available else 'no ':<3}  {row.detail}"
            )
            if row.remedy:
                lines.append(f"{'':<{width}}       remedy: {row.remedy}")
        if self.forced is not None:
            lines.append(f"{dispatch.ENVIRONMENT}={self.forced}")
        return "\n".join(lines)


def capabilities() -> Capabilities:
    """Return which backends are usable here, and for each absent one the reason and the remedy.

    Raises:
        ValueError: ``SPECTRAL_KERNELS_BACKEND`` names an unknown backend.

    Example:
        >>> sk.capabilities()["torch"].available
        True
    """
    rows = (_compiled(), _torch(), _cuda(), _triton(), _cupy())
    return Capabilities(rows, dispatch.forced())


def _compiled() -> Capability:
    reason = dispatch.compiled_refusal()
    if reason is not None:
        detail = "compiled CPU kernels are missing; everything runs on torch instead"
        return Capability("cpu", False, detail, dispatch.COMPILE_REMEDY)
    from spectral_kernels import _C

    usable = ", ".join(_C.isas())
    return Capability("cpu", True, f"compiled CPU kernels, {_C.isa()} in use (here: {usable})")


def _torch() -> Capability:
    threads = torch.get_num_threads()
    detail = f"torch {torch.__version__}, {threads} thread{'s' if threads != 1 else ''}"
    if forks.forked():
        detail += " (a forked child: OpenMP's threads do not survive a fork)"
    return Capability("torch", True, detail)


def _cuda() -> Capability:
    reason = launcher.refusal()
    if reason is not None:
        detail, _, remedy = reason.partition("; ")
        return Capability("cuda", False, detail, remedy)
    offered = ", ".join(name for name, have in dispatch.OPERATIONS.items() if "cuda" in have)
    how = "compiled when first used" if image.missing() else "compiled for this installation"
    detail = f"{torch.cuda.get_device_name()}; kernels for {offered}; {how}"
    return Capability("cuda", True, detail)


def _triton() -> Capability:
    reason = triton_runtime.refusal()
    if reason is not None:
        detail, _, remedy = reason.partition("; ")
        return Capability("triton", False, detail, remedy)
    offered = ", ".join(name for name, have in dispatch.OPERATIONS.items() if "triton" in have)
    how = "interpreted in Python" if triton_runtime.interpreting() else "compiled when first used"
    return Capability("triton", True, f"kernels for {offered}; {how}")


def _cupy() -> Capability:
    if importlib.util.find_spec("cupy") is None:
        remedy = "pip install spectral-kernels[cupy]"
        return Capability("cupy", False, "CuPy is not installed; CuPy arrays cannot occur", remedy)
    if not torch.cuda.is_available():
        return Capability("cupy", False, "CuPy is installed, but torch has no CUDA device")
    return Capability("cupy", True, "CuPy arrays come and go through DLPack")
