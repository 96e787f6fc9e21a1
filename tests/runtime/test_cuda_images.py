"""setup.py and nvcc: what is compiled, when it is compiled again, what happens where it fails."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from spectral_kernels.runtime.cuda import sources
from tests.support import setup_script
from tests.support.cuda_resources import NVCC
from tests.support.fake_compilers import fake_nvcc


def cuobjdump() -> Path | None:
    """The one that Triton brings along: not every nvcc has it."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    path = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return path if path.exists() else None


CUOBJDUMP = cuobjdump()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """setup.py in a checkout of its own, with two sources and a header."""
    for name in ("cuda/a.cu", "cuda/b.cu", "cuda/shared.cuh"):
        (tmp_path / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).write_text(f"// {name}")
    functions = setup_script.functions()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(functions, "cuda_sources", lambda: sources)
    for name in ("SPECTRAL_KERNELS_CUDA", "SPECTRAL_KERNELS_WERROR", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return functions


def test_an_image_is_made_once(script: dict[str, Any], tmp_path: Path) -> None:
    compiler, folder = fake_nvcc(tmp_path), tmp_path / "images"

    def build() -> int:
        for name in ("a.cu", "b.cu"):
            script["build_image"](str(compiler), name, folder)
        images = sorted(path.name for path in folder.iterdir())
        root = Path("csrc")
        assert images == sorted(sources.fatbin_name(root, name) for name in ("a.cu", "b.cu"))
        return len((tmp_path / "log").read_text().splitlines())

    assert [build(), build()] == [2, 2]
    Path("csrc/cuda/a.cu").write_text("// changed")
    assert [build(), build()] == [3, 3]
    Path("csrc/cuda/shared.cuh").write_text("// changed")
    assert build() == 5


def test_architectures(script: dict[str, Any], tmp_path: Path) -> None:
    script["build_image"](str(fake_nvcc(tmp_path)), "a.cu", tmp_path)
    told = (tmp_path / "log").read_text().split()
    assert {x for x in told if x.startswith("-gencode")} == {
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    }
    assert told[told.index("-o") - 1] == "csrc/cuda/a.cu"


def test_an_nvcc_that_fails(
    script: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    compiler, folder = fake_nvcc(tmp_path, "exit 1"), tmp_path / "images"
    script["build_image"](str(compiler), "a.cu", folder)
    assert "nvcc fails on a.cu: it will be compiled at run time" in capfd.readouterr().err
    assert not list(folder.iterdir())
    monkeypatch.setenv("SPECTRAL_KERNELS_WERROR", "1")
    with pytest.raises(subprocess.CalledProcessError):
        script["build_image"](str(compiler), "a.cu", folder)


def test_where_nvcc_is_looked_for(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert script["nvcc"]() is None
    compiler = fake_nvcc(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert script["nvcc"]() == str(compiler)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(compiler.parent))
    assert script["nvcc"]() == str(compiler)


@pytest.mark.parametrize(("wish", "anywhere", "for_a_checkout"),
                         [(None, None, False), ("1", True, True), ("0", False, False)])  # fmt: skip
@pytest.mark.parametrize("gpu", [False, True])
def test_what_images_are_made_for(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    wish: str | None, anywhere: bool | None, for_a_checkout: bool, gpu: bool,
) -> None:  # fmt: skip
    if wish is not None:
        monkeypatch.setenv("SPECTRAL_KERNELS_CUDA", wish)
    monkeypatch.setitem(script, "has_gpu", lambda: gpu)
    assert script["wants_images"](False) == (anywhere is not False)
    assert script["wants_images"](True) == (gpu if anywhere is None else for_a_checkout)


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None or CUOBJDUMP is None, reason="needs nvcc and Triton's cuobjdump")
def test_a_real_image_has_code_for_every_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(setup_script.ROOT)
    script = setup_script.functions()
    script["build_image"](NVCC, "gram_values.cu", tmp_path)
    (image,) = tmp_path.iterdir()
    listed = subprocess.run(
        [str(CUOBJDUMP), "--list-elf", "--list-ptx", str(image)], capture_output=True, text=True
    ).stdout
    found = set(re.findall(r"sm_\d+\.(?:cubin|ptx)", listed))
    assert found == {"sm_80.cubin", "sm_90.cubin", "sm_90.ptx"}
