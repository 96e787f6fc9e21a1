"""Compiles a CUDA source with g++ against tests/native/cuda_host.h."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests/native"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
HARNESS = ("cuda_fiber", "cuda_meetings", "cuda_host")
FLAGS = ["-std=c++17", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off",
         "-U_FORTIFY_SOURCE", f"-I{NATIVE}", f"-I{ROOT / 'csrc'}"]  # fmt: skip

SANITIZERS = {
    None: [],
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}


@functools.cache
def built(source: Path, sanitizer: str | None = None) -> Path:
    """Compile one .cu file: a shared library, or with a sanitizer a program. Kept in build/."""
    return _kept(
        f"{source.stem}-{sanitizer or 'plain'}",
        [source, *_headers(), *_harness()],
        [*FLAGS, *SANITIZERS[sanitizer]],
        lambda scratch: _compile(source, sanitizer, scratch),
    )


def _kept(name: str, files: list[Path], flags: list[str], make: Callable[[Path], Path]) -> Path:
    """Return what ``make`` makes in a folder, made once for these files and flags."""
    key = hashlib.sha256(f"{COMPILER} {flags}".encode())
    for file in files:
        key.update(file.read_bytes())
    target = ROOT / f"build/cuda_host/{name}-{key.hexdigest()[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Another process that wants the same waits for the first instead of compiling it, too.
    with target.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory() as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            shutil.move(make(Path(scratch)), target)
    return target


def _headers() -> list[Path]:
    return sorted([*ROOT.glob("csrc/cuda/*.cuh"), *ROOT.glob("csrc/include/*.h")])


def _harness() -> list[Path]:
    return sorted(NATIVE.glob("cuda_*"))


def _run(*arguments: object) -> None:
    subprocess.run([str(COMPILER), *FLAGS, *map(str, arguments)], check=True)


def _compile(source: Path, sanitizer: str | None, scratch: Path) -> Path:
    instrument = SANITIZERS[sanitizer]
    kernel, target = scratch / "kernel.o", scratch / "made"
    _run("-O1" if sanitizer else "-O2", *instrument, "-x", "c++", "-c", source, "-o", kernel)
    objects = [kernel, *(_part(name, sanitizer) for name in HARNESS)]
    if sanitizer:
        _run("-O1", *instrument, NATIVE / "cuda_main.cpp", *objects, "-o", target)
    else:
        _run("-shared", *objects, "-o", target)
    return target


@functools.cache
def _part(name: str, sanitizer: str | None) -> Path:
    """An object of the harness, which all sources share.

    It is never instrumented: its bookkeeping would be reported as races.
    """
    flags = ["-O2", *([f"-DSK_{sanitizer[0].upper()}SAN"] if sanitizer else [])]

    def make(scratch: Path) -> Path:
        _run(*flags, "-c", NATIVE / f"{name}.cpp", "-o", scratch / "part.o")
        return scratch / "part.o"

    return _kept(
        f"{name}-{sanitizer or 'plain'}", [*_harness(), *_headers()], [*FLAGS, *flags], make
    )
