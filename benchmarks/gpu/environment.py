"""What a reader of GPU figures needs to know: device, versions, commit, ceilings."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import spectral_kernels as sk
from benchmarks.gpu.floors import Ceilings

_PACKAGES = ("torch", "triton", "cupy-cuda13x", "numpy")
_ROOT = Path(__file__).resolve().parents[2]


def environment(device: str, ceilings: Ceilings) -> dict[str, Any]:
    """Return the head of a record."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "spectral_kernels": sk.__version__,
        "commit": _output("git", "-C", str(_ROOT), "rev-parse", "HEAD"),
        "capabilities": str(sk.capabilities()).splitlines(),
        "ceilings": asdict(ceilings),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
