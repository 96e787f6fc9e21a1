"""Adapter to CuPy's NVRTC: a CUDA source to device code, where no image was shipped."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from types import ModuleType

from spectral_kernels.runtime.cuda import sources

REMEDY = (
    "pip install spectral-kernels[cupy], which compiles them on first use, or build "
    "spectral-kernels where nvcc is installed"
)


def installed() -> bool:
    """Whether CuPy is there; whether its NVRTC works is found when it is first used."""
    return importlib.util.find_spec("cupy") is not None


def cubin(name: str, capability: tuple[int, int]) -> bytes:
    """Return device code of the source ``name`` for one compute capability.

    Kept in ``$XDG_CACHE_HOME/spectral_kernels`` (or ``~/.cache``), under a name that changes with
    the sources, the compiler and the device; where nothing can be written it is compiled anew.

    Raises:
        RuntimeError: CuPy or its NVRTC is not there, or the source does not compile, with its log.
    """
    nvrtc, version = _library()
    architecture = "sm_{}{}".format(*capability)
    key = sources.digest(sources.folder(), name)
    path = _cache() / f"{Path(name).stem}-{key}-{architecture}-nvrtc{version}.cubin"
    try:
        return path.read_bytes()
    except OSError:
        code = _compile(nvrtc, name, architecture)
        _keep(path, code)
        return code


def _library() -> tuple[ModuleType, str]:
    try:
        from cupy.cuda import nvrtc

        return nvrtc, "{}.{}".format(*nvrtc.getVersion())
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"this installation has no compiled CUDA kernels, and CuPy's NVRTC cannot make them "
            f"({error}); {REMEDY}"
        ) from error


def _compile(nvrtc: ModuleType, name: str, architecture: str) -> bytes:
    root = sources.folder()
    program = nvrtc.createProgram((root / "cuda" / name).read_text(), name, (), ())
    options = (*sources.OPTIONS, f"-I{root}", f"--gpu-architecture={architecture}")
    try:
        nvrtc.compileProgram(program, options)
        code: bytes = nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"NVRTC cannot compile {name} for {architecture}: {log}") from error
    finally:
        nvrtc.destroyProgram(program)
    return code


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "spectral_kernels"


def _keep(path: Path, code: bytes) -> None:
    """Write in one step, so that a process beside this one never reads half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code)
        Path(file.name).replace(path)
    except OSError:
        return
