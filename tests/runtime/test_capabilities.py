"""capabilities(), and the choice of backend."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.runtime import dispatch


def test_lists_every_backend_with_reason_and_remedy() -> None:
    found = sk.capabilities()
    assert [row.name for row in found.rows] == ["cpu", "cuda", "triton", "torch", "cupy"]
    assert found["torch"].available
    text = str(found)
    for row in found.rows:
        assert row.detail
        assert row.detail in text
        assert row.remedy in text
    with pytest.raises(KeyError, match="expected one of cpu, cuda"):
        found["tpu"]


def test_the_compiled_row_names_the_instruction_sets(every_isa: str) -> None:
    if not every_isa.startswith("cpu"):
        assert sk.capabilities().forced == every_isa
        return
    row = sk.capabilities()["cpu"]
    assert row.available
    assert f"{every_isa.removeprefix('cpu-')} in use" in row.detail


@pytest.fixture
def without_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spectral_kernels._C", None)
    monkeypatch.setattr(dispatch, "_chosen", {})


@pytest.mark.usefixtures("without_compiled")
def test_without_the_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    row = sk.capabilities()["cpu"]
    assert not row.available
    assert "missing" in row.detail
    assert "pip install" in row.remedy
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    assert dispatch.backend("svd", "cpu").__name__.endswith("torch_backend")
    torch.testing.assert_close(sk.svdvals(torch.eye(4)), torch.ones(4))
    monkeypatch.setenv(dispatch.ENVIRONMENT, "cpu")
    with pytest.raises(RuntimeError, match=r"SPECTRAL_KERNELS_BACKEND=cpu.*missing.*pip install"):
        sk.svdvals(torch.eye(4))


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENVIRONMENT, "gpu")
    for call in (lambda: sk.svdvals(torch.eye(4)), sk.capabilities):
        with pytest.raises(ValueError, match="='gpu' names no backend; expected one of 'cpu', 'c"):
            call()


def test_an_empty_variable_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENVIRONMENT, "")
    assert dispatch.forced() is None
    sk.svdvals(torch.eye(2))


def test_the_choice(backend: str) -> None:
    wanted = {"cpu": "cpu", "torch": "torch_backend", "triton": "triton_backend"}[backend]
    for operation, offered in dispatch.OPERATIONS.items():
        module = dispatch.backend(operation, "cpu").__name__
        # Without what is asked for, the first of the table that can.
        other = "cpu" if backend == "triton" and "cpu" in offered else "torch_backend"
        chosen = wanted if backend in offered else other
        assert module == f"spectral_kernels.{operation}.{chosen}"


def test_what_is_said_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row, the reason and the remedy, in each state that a machine can be in."""
    versions = {"triton": "3.9.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    row = sk.capabilities()["triton"]
    assert row.available
    assert "rank" in row.detail
    assert "compiled when first used" in row.detail
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert "older than sm_80" in sk.capabilities()["triton"].detail
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (10, 0))
    assert "miscompiles" in sk.capabilities()["triton"].detail
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = sk.capabilities()["triton"]
    assert not row.available
    assert "no CUDA device" in row.detail
    assert "TRITON_INTERPRET=1" in row.remedy
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    row = sk.capabilities()["triton"]
    assert row.available
    assert "interpreted" in row.detail
    versions["triton"] = "3.5.1"
    assert "3.5.1 is older than 3.6" in sk.capabilities()["triton"].detail
    versions.clear()
    row = sk.capabilities()["triton"]
    assert row.detail == "Triton is not installed"
    assert row.remedy == "pip install spectral-kernels[triton]"


def test_refusals_name_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENVIRONMENT, "cpu")
    with pytest.raises(RuntimeError, match="cpu: runs on cpu, not on cuda"):
        dispatch.backend("svd", "cuda")
    monkeypatch.setenv(dispatch.ENVIRONMENT, "torch")
    assert dispatch.backend("svd", "cuda").__name__.endswith("torch_backend")


def test_instruction_sets_are_refused_by_name() -> None:
    _C = pytest.importorskip("spectral_kernels._C", reason="not compiled")
    before = _C.isa()
    assert before in _C.isas()
    with pytest.raises((ValueError, RuntimeError), match="sse9"):
        _C.set_isa("sse9")
    assert _C.isa() == before


_NO_CUDA = """
import torch

def asked(*given):
    raise AssertionError("CUDA was asked for")

torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = asked
import spectral_kernels as sk
import spectral_monitor
from spectral_monitor.monitor import SpectralMonitor
sk.svd(torch.eye(3))
monitor = SpectralMonitor(torch.nn.Linear(4, 3))
monitor.step(loss=torch.ones(()))
monitor.step()
monitor.close()
assert not torch.cuda.is_initialized()
"""


def test_cpu_tensors_do_not_start_cuda() -> None:
    """A process forked from one that uses CUDA, as a data loader's workers are, cannot do so."""
    done = subprocess.run([sys.executable, "-c", _NO_CUDA], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
