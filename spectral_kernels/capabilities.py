"""Which backends are there, and for each absent one the reason and the remedy."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

from spectral_kernels.runtime import dispatch, forks
from spectral_kernels.runtime.cuda import image
from spectral_kernels.runtime.triton import host


@dataclass(frozen=True)
class Capability:
    """One row: a backend or an array library, whether it is usable, and what to do if not."""

    name: str
    available: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Capabilities:
    """The rows of ``capabilities()``; ``print`` shows them as a table, ``[name]`` gives one."""

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
    rows = [_row(backend.name, backend.refusal(), _DETAILS[backend.name])
            for backend in dispatch.BACKENDS]  # fmt: skip
    return Capabilities((*rows, _row("cupy", _no_cupy(), _cupy)), dispatch.forced())


def _row(name: str, refusal: str | None, detail: Callable[[], str]) -> Capability:
    if refusal is None:
        return Capability(name, True, detail())
    reason, _, remedy = refusal.partition("; ")
    return Capability(name, False, reason, remedy)


def _compiled() -> str:
    from spectral_kernels import _C

    return f"compiled CPU kernels, {_C.isa()} in use (here: {', '.join(_C.isas())})"


def _cuda() -> str:
    how = "compiled when first used" if image.missing() else "compiled for this installation"
    return f"{torch.cuda.get_device_name()}; {_kernels('cuda')}; {how}"


def _triton() -> str:
    interpreted = host.interpreting()
    how = "interpreted in Python" if interpreted else "compiled when first used"
    return f"{_kernels('triton')}; {how}"


def _torch() -> str:
    threads = torch.get_num_threads()
    forked = " (a forked child: OpenMP's threads do not survive a fork)" if forks.forked() else ""
    return f"torch {torch.__version__}, {threads} thread{'s' if threads != 1 else ''}{forked}"


def _cupy() -> str:
    return "CuPy arrays come and go through DLPack"


def _no_cupy() -> str | None:
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed, CuPy arrays cannot occur; pip install spectral-kernels[cupy]"
    if not torch.cuda.is_available():
        return "CuPy is installed, but torch has no CUDA device"
    return None


def _kernels(backend: str) -> str:
    offered = (name for name, backends in dispatch.OPERATIONS.items() if backend in backends)
    return f"kernels for {', '.join(offered)}"


_DETAILS = {"cpu": _compiled, "cuda": _cuda, "triton": _triton, "torch": _torch}
