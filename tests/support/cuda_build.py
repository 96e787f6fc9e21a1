"""Compiles a CUDA source with g++ against tests/native/cuda_host.h."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
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


def built(source: Path, sanitizer: str | None = None) -> Path:
    """Compile one .cu file: a shared library, or with a sanitizer a program. Kept in build/."""
    key = hashlib.sha256()
    for file in [source, *_headers(), *sorted(NATIVE.glob("cuda_*"))]:
        key.update(file.read_bytes())
    key.update(f"{COMPILER} {FLAGS} {SANITIZERS[sanitizer]}".encode())
    target = ROOT / f"build/cuda_host/{source.stem}-{sanitizer or 'plain'}-{key.hexdigest()[:16]}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = _compile(source, sanitizer, Path(scratch))
            # Another process may have been faster: both made the same.
            made.replace(target)
    return target


def _headers() -> list[Path]:
    return sorted([*ROOT.glob("csrc/cuda/*.cuh"), *ROOT.glob("csrc/include/*.h")])


def _compile(source: Path, sanitizer: str | None, scratch: Path) -> Path:
    def run(*arguments: str) -> None:
        subprocess.run([str(COMPILER), *FLAGS, *arguments], check=True)

    instrument = SANITIZERS[sanitizer]
    defined = [f"-DSK_{sanitizer[0].upper()}SAN"] if sanitizer else []
    optimise = "-O1" if sanitizer else "-O2"
    kernel, target = str(scratch / "kernel.o"), str(scratch / "made")
    run(optimise, *instrument, "-x", "c++", "-c", str(source), "-o", kernel)
    objects = [kernel]
    # The harness is never instrumented: its bookkeeping would be reported as races.
    for part in HARNESS:
        objects.append(str(scratch / f"{part}.o"))
        run("-O2", *defined, "-c", str(NATIVE / f"{part}.cpp"), "-o", objects[-1])
    if sanitizer:
        run("-O1", *instrument, str(NATIVE / "cuda_main.cpp"), *objects, "-o", target)
    else:
        run("-shared", *objects, "-o", target)
    return Path(target)
