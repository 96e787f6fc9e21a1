"""The C++ kernels without Python, under the sanitizers for memory and undefined behaviour."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def flags_per_isa() -> dict[str, list[str]]:
    """The flags of setup.py, without running its setup()."""
    source = (ROOT / "setup.py").read_text().rpartition("\nsetup(")[0]
    spec = importlib.util.spec_from_loader("setup_flags", loader=None)
    assert spec is not None
    namespace: dict[str, Any] = {"__name__": spec.name}
    exec(compile(source, "setup.py", "exec"), namespace)
    flags: dict[str, list[str]] = namespace["ISAS"]
    return flags


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_kernels_keep_to_their_buffers(isa: str, tmp_path: Path) -> None:
    compiled = pytest.importorskip("spectral_kernels._C", reason="tells what this machine can run")
    if isa not in compiled.isas():
        pytest.skip(f"this machine does not run {isa}")
    program = tmp_path / isa
    kernels = (ROOT / "csrc/cpu" / name for name in ("kernels.cpp", "normals.cpp"))
    sources = [ROOT / "tests/native/memory.cpp", *kernels]
    subprocess.run(
        [str(COMPILER), "-std=c++17", "-O1", "-g", "-fno-math-errno", "-Wno-psabi",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
         *flags_per_isa()[isa], f"-I{ROOT / 'csrc'}",
         f"-DSK_ISA={isa}", f"-DSK_TABLE=kernels_{isa}",
         *map(str, sources), "-o", str(program)],
        check=True,
    )  # fmt: skip
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
