"""The wheel: one file that brings the compiled kernels along and needs no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from spectral_kernels.runtime.cuda.sources import fatbin_name, kernel_files, packed_files
from tests.support.cuda_build import COMPILER
from tests.support.fake_compilers import fake_nvcc, quick_compiler

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
from pathlib import Path

import numpy as np
import torch
import spectral_kernels as sk
from spectral_kernels.runtime.cuda import image, sources

site = Path(sys.argv[1])
assert site in Path(sk.__file__).parents, sk.__file__
assert site in sources.folder().parents
assert not image.missing(), image.missing()
A = torch.arange(12.0).reshape(3, 4)
np.testing.assert_allclose(sk.svdvals(A), np.linalg.svd(A.numpy())[1], atol=1e-5)
frame = sk.SpectralMonitor(torch.nn.Linear(4, 3)).step()
assert frame.matrices["weight"].finite
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"matplotlib", "pandas", "plotly", "triton", "cupy"}))
assert sk.capabilities()["cpu"].available, sk.capabilities()
"""


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_wheel_runs_elsewhere(tmp_path: Path) -> None:
    # A copy: setuptools builds in the tree, and would pack what an earlier build left there.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "runs", "*.so"))
    # What compilers make of the real sources is held by test_cuda_sources and by all other tests.
    compiler = str(quick_compiler(tmp_path, str(COMPILER)))
    fake_nvcc(tmp_path)
    wanted = {"CC": compiler, "CXX": compiler, "CUDA_HOME": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps",
         "-w", str(tmp_path), str(source)],
        check=True, env={**os.environ, **wanted, "SPECTRAL_KERNELS_CUDA": "1"},
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    assert {
        "spectral_kernels/py.typed",
        "spectral_monitor/py.typed",
        "spectral_kernels/_C.pyi",
    } <= names
    assert "spectral_monitor/figures/report.html.j2" in names
    assert not [
        n for n in names if n.startswith(("tests/", "experiments/", "benchmarks/", "csrc/"))
    ]
    assert {
        f"spectral_kernels/runtime/cuda/csrc/{name}" for name in packed_files(ROOT / "csrc")
    } <= names
    image_names = [fatbin_name(ROOT / "csrc", name) for name in kernel_files(ROOT / "csrc")]
    images = {f"spectral_kernels/runtime/cuda/images/{name}" for name in image_names}
    assert {name for name in names if name.endswith(".fatbin")} == images
    environment = {k: v for k, v in os.environ.items() if k not in {"CC", "CXX"}}
    # No compiler to be found, and nothing of the source tree either.
    environment |= {"PYTHONPATH": str(site), "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(site)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
