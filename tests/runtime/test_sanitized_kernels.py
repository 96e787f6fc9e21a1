"""The C++ kernels without Python, under the sanitizers for memory and undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import setup_script

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_kernels_keep_to_their_buffers(isa: str, tmp_path: Path) -> None:
    compiled = pytest.importorskip("spectral_kernels._C", reason="tells what this machine can run")
    if isa not in compiled.isas():
        pytest.skip(f"this machine does not run {isa}")
    program = tmp_path / isa
    script = setup_script.functions()
    sources = ["tests/native/memory.cpp", *script["PER_ISA"]]
    subprocess.run(
        [str(COMPILER), "-std=c++17", "-O1", "-g", "-fno-math-errno", "-Wno-psabi",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
         *script["ISAS"][isa], "-Icsrc", f"-DSK_ISA={isa}", *sources, "-o", str(program)],
        check=True, cwd=ROOT,
    )  # fmt: skip
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
