"""Where the CUDA sources and their compiled images lie, and which image belongs to which source.

An image's name carries a digest of the sources, so one that was made of others is never loaded.
setup.py reads this file too, by its path: the standard library only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

HERE = Path(__file__).resolve().parent

# For nvcc and for NVRTC. -lineinfo adds lines for profilers and sanitizers, no instruction.
OPTIONS = ("-std=c++17", "-lineinfo")

# Architectures with code of their own, and the one whose PTX newer devices translate.
SM = (80, 90)
PTX = 90


def folder() -> Path:
    """Return the folder that ``#include "cuda/device.cuh"`` starts from.

    An installed wheel has the sources inside the package, a checkout beside it.
    """
    packed = HERE / "csrc"
    return packed if packed.is_dir() else HERE.parents[2] / "csrc"


def kernel_files(root: Path) -> list[str]:
    """Return the names of all .cu files below ``root`` (a folder like ``folder()``)."""
    return sorted(path.name for path in root.glob("cuda/*.cu"))


def packed_files(root: Path) -> list[str]:
    """Return what a wheel needs to compile the kernels where it is installed."""
    files = [*root.glob("cuda/*.cu"), *_headers(root)]
    return sorted(path.relative_to(root).as_posix() for path in files)


def digest(root: Path, name: str) -> str:
    """Return a digest of the source ``name``, everything it may include, and the options."""
    state = hashlib.sha256(" ".join(OPTIONS).encode())
    for path in (root / "cuda" / name, *_headers(root)):
        text = path.read_bytes()
        state.update(f"\n{path.name} {len(text)}\n".encode())
        state.update(text)
    return state.hexdigest()[:16]


def _headers(root: Path) -> list[Path]:
    return sorted([*root.glob("cuda/*.cuh"), *root.glob("include/*.h")])


def fatbin_name(root: Path, name: str) -> str:
    """Return the file name of the image that nvcc makes of the source ``name``."""
    return f"{Path(name).stem}-{digest(root, name)}.fatbin"


def nvcc_options(root: Path) -> list[str]:
    """Return the options that make a fat binary for every architecture of ``SM`` and ``PTX``."""
    codes = [f"arch=compute_{sm},code=sm_{sm}" for sm in SM]
    codes.append(f"arch=compute_{PTX},code=compute_{PTX}")
    return ["-fatbin", *OPTIONS, f"-I{root}", *(f"-gencode={code}" for code in codes)]
