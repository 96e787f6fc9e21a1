"""The CUDA sources: they compile for every architecture without spills, and need no header."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
from pathlib import Path

import pytest

from spectral_kernels.runtime.cuda import nvrtc, sources
from spectral_kernels.runtime.cuda.table import KERNELS, Kernel
from tests.support import cuda_on_host, cuda_resources
from tests.support.cuda_resources import NVCC, ROOT

SOURCES = sources.kernel_files(ROOT / "csrc")
DECLARED = re.compile(r"^\s*SK_KERNEL\((\w+),", re.MULTILINE)

needs_compiler = pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="needs a C++ compiler")


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("sm", sources.SM)
@pytest.mark.parametrize("source", SOURCES)
def test_nvcc(source: str, sm: int) -> None:
    found = cuda_resources.resources(source, sm)
    assert found
    spilling = {name: row for name, row in found.items() if row["spills"]}
    assert not spilling
    committed = cuda_resources.committed()
    known = committed["sources"].get(source, {}).get(f"sm_{sm}", {})
    assert set(found) == set(known), "renew it: python -m tests.support.cuda_resources --write"
    # Another release of nvcc allocates registers in its own way.
    if committed["nvcc"] == cuda_resources.release():
        assert found == known, "renew it: python -m tests.support.cuda_resources --write"


def test_the_committed_table_has_every_source_and_no_spills() -> None:
    table = cuda_resources.committed()["sources"]
    assert set(table) == set(SOURCES)
    for rows in table.values():
        assert set(rows) == {f"sm_{sm}" for sm in sources.SM}
        assert not [name for found in rows.values() for name in found if found[name]["spills"]]


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_spills_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 96 numbers that live at once, in 32 registers.
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/planted.cu").write_text("""
        struct Params { double* y; };
        extern "C" __global__ void __launch_bounds__(1024, 2) spills(Params p) {
          double x[96];
          _Pragma("unroll") for (int i = 0; i < 96; ++i) x[i] = p.y[i * 1024 + threadIdx.x];
          __syncthreads();
          _Pragma("unroll") for (int i = 0; i < 96; ++i) p.y[i * 7 + threadIdx.x] = x[95 - i];
        }""")
    monkeypatch.setattr(cuda_resources, "ROOT", tmp_path)
    for sm in sources.SM:
        assert cuda_resources.resources("planted.cu", sm)["spills"]["spills"] > 0


def test_the_launcher_table_has_every_kernel_once() -> None:
    declared = {
        name: source
        for source in SOURCES
        for name in DECLARED.findall((ROOT / "csrc/cuda" / source).read_text())
    }
    assert {name: kernel.source for name, kernel in KERNELS.items()} == declared


@needs_compiler
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda kernel: kernel.name)
def test_fields_are_as_long_as_the_struct(kernel: Kernel) -> None:
    library = ctypes.CDLL(str(cuda_on_host.built(ROOT / "csrc/cuda" / kernel.source)))
    library.sk_host_params_bytes.restype = ctypes.c_int64
    length = library.sk_host_params_bytes(kernel.name.encode())
    assert length == struct.calcsize("<" + kernel.fields.replace("P", "Q"))
    # What a kernel's parameters may take on every architecture.
    assert length <= 4096


@needs_compiler
@pytest.mark.parametrize("source", SOURCES)
def test_nvrtc_finds_no_header_that_it_lacks(source: str) -> None:
    command = [str(cuda_on_host.COMPILER), "-E", "-P", "-nostdinc", "-x", "c++", "-std=c++17",
               "-D__CUDACC__", "-D__CUDACC_RTC__", f"-I{ROOT / 'csrc'}"]  # fmt: skip
    done = subprocess.run(
        [*command, str(ROOT / "csrc/cuda" / source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "std::" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sm", sources.SM)
@pytest.mark.parametrize("source", SOURCES)
def test_nvrtc(source: str, sm: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = nvrtc.cubin(source, divmod(sm, 10))
    assert code.startswith(b"\x7fELF")
    for name in DECLARED.findall((ROOT / "csrc/cuda" / source).read_text()):
        assert name.encode() in code
