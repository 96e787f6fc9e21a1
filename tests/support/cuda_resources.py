"""What nvcc makes of every CUDA kernel: registers and spills, for sm_80 and sm_90.

``python -m tests.support.cuda_resources --write`` renews the table that test_cuda_sources.py
compares with.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spectral_kernels.runtime.cuda import sources

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests/data/cuda_resources.json"
NVCC = shutil.which("nvcc")

_KERNEL = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)

Resources = dict[str, dict[str, int]]


def release() -> str:
    """The release of nvcc, such as "13.0"."""
    told = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"release (\S+),", told.stdout)
    assert found is not None
    return found[1]


def resources(source: str, sm: int) -> Resources:
    """Compile one file of csrc/cuda; registers, bytes of stack and of spills of each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(NVCC), "-cubin", f"-arch=sm_{sm}", *sources.OPTIONS, "-Xptxas", "-v",
             "-Werror", "all-warnings", f"-I{ROOT / 'csrc'}", str(ROOT / "csrc/cuda" / source),
             "-o", f"{folder}/made.cubin"],
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: Resources = {}
    for match in _KERNEL.finditer(done.stderr):
        numbers = {k: int(v) for k, v in match.groupdict().items() if k != "kernel"}
        spills = numbers.pop("stores") + numbers.pop("loads")
        found[match["kernel"]] = dict(sorted((numbers | {"spills": spills}).items()))
    assert len(found) == done.stderr.count("Compiling entry function"), done.stderr
    return dict(sorted(found.items()))


def everything() -> dict[str, Any]:
    """The whole table: source -> architecture -> kernel -> numbers, and the release of nvcc."""
    names = sources.kernel_files(ROOT / "csrc")
    jobs = [(name, sm) for name in names for sm in sources.SM]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda job: resources(*job), jobs))
    table: dict[str, Any] = {"nvcc": release(), "sources": {name: {} for name in names}}
    for (name, sm), found in zip(jobs, made, strict=True):
        table["sources"][name][f"sm_{sm}"] = found
    return table


def committed() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


if __name__ == "__main__":
    text = json.dumps(everything(), indent=1) + "\n"
    if "--write" in sys.argv:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text)
    else:
        print(text, end="")
