"""From a call in Python to the driver, against a stand-in for libcuda that notes its calls."""

from __future__ import annotations

import contextlib
import ctypes
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.cuda import driver, image, launcher, nvrtc, on_device, sources
from spectral_kernels.runtime.cuda.table import Kernel, Limits, packed
from tests.support import cuda_on_host

NATIVE = Path(__file__).parents[1] / "native"
KERNELS = {
    name: Kernel(name, "gram_values.cu", fields)
    for name, fields in {"small": "PqPd", "other": "P"}.items()
}
X = torch.arange(4.0)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if cuda_on_host.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    target = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    source = NATIVE / "stub_libcuda.cpp"
    command = [cuda_on_host.COMPILER, "-shared", "-fPIC", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(target))
    library.stub_calls.restype = ctypes.c_char_p
    return library


class Stub:
    """What torch and libcuda say of two devices of capability 9.0."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.fail("")
        self.current = 0

    def fail(self, call: str) -> None:
        self.library.stub_reset(call.encode())

    def calls(self) -> list[str]:
        """The calls since this was last asked."""
        found: list[str] = self.library.stub_calls().decode().splitlines()
        handed, self.handed = getattr(self, "handed", 0), len(found)
        return found[handed:]

    @contextlib.contextmanager
    def device(self, index: int | None) -> Iterator[None]:
        before, self.current = self.current, index or 0
        yield
        self.current = before

    def stream(self) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=70 + self.current)


@pytest.fixture
def stub(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    made = Stub(library)
    monkeypatch.setattr(torch.cuda, "device", made.device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: made.current)
    monkeypatch.setattr(torch.cuda, "current_stream", made.stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(
        torch.Tensor, "device", property(lambda x: SimpleNamespace(index=0, type="cpu"))
    )
    monkeypatch.setattr(launcher, "KERNELS", KERNELS)
    monkeypatch.setattr(image, "IMAGES", tmp_path)
    for source in sources.kernel_files(sources.folder()):
        name = sources.fatbin_name(sources.folder(), source)
        (tmp_path / name).write_bytes(b"\x50\xed\x55\xba and so on")
    driven = on_device.DeviceLauncher(driver.Driver(library._name))
    monkeypatch.setattr(launcher, "_of_devices", lambda: driven)
    return made


def test_a_launch(stub: Stub) -> None:
    launcher.launch("small", 7, 128, 1024, X, -5, None, 0.25)
    parameters = struct.pack("<QqQd", X.data_ptr(), -5, 0, 0.25).hex()
    assert stub.calls() == [
        # This thread had no context.
        "retain 0",
        "bind 900",
        "load 50ed55ba",
        "function 101 small",
        f"launch 102 7x1x1 128x1x1 shared 1024 stream 70 {parameters}",
    ]
    launcher.launch("small", 1, 32, 0, X, 1, X[2:], 1)
    parameters = struct.pack("<QqQd", X.data_ptr(), 1, X.data_ptr() + 8, 1.0).hex()
    # Nothing is loaded again.
    assert stub.calls() == [f"launch 102 1x1x1 32x1x1 shared 0 stream 70 {parameters}"]
    launcher.launch("other", 1, 32, 0, X)
    assert [call.partition(" ")[0] for call in stub.calls()] == ["function", "launch"]
    launcher.launch("other", 0, 32, 0, X)
    assert not stub.calls()


def test_much_shared_memory_is_asked_for_once(stub: Stub) -> None:
    for shared_bytes in (48 << 10, 100_000, 60_000, 232_448):
        launcher.launch("other", 1, 32, shared_bytes, X)
    asked = [call for call in stub.calls() if call.startswith("set")]
    # cuda.h: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES is 8.
    assert [call.split()[2:] for call in asked] == [["8", "100000"], ["8", "232448"]]


def test_every_device_gets_its_own_module(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [torch.zeros(1), torch.zeros(1)]
    index = {id(x): i for i, x in enumerate(arrays)}
    told = property(lambda x: SimpleNamespace(index=index[id(x)]))
    monkeypatch.setattr(torch.Tensor, "device", told)
    for x in (arrays[1], arrays[0], arrays[1]):
        launcher.launch("other", 1, 32, 0, x)
    calls = [call.split() for call in stub.calls()]
    bound = [" ".join(call) for call in calls if call[0] in ("retain", "bind")]
    # Whatever context another library left in this thread.
    assert bound == ["retain 1", "bind 901", "retain 0", "bind 900", "bind 901"]
    calls = [call for call in calls if call[0] not in ("retain", "bind")]
    assert [call[0] for call in calls] == [*["load", "function", "launch"] * 2, "launch"]
    streams = [call[-2] for call in calls if call[0] == "launch"]
    assert streams == ["71", "70", "71"]
    assert stub.current == 0


def test_limits(stub: Stub) -> None:
    # cuda.h: 97 is the shared memory a block may ask for, 16 the number of multiprocessors.
    here, there = torch.device("cuda"), torch.device("cuda", 1)
    assert launcher.limits(here) == Limits(shared_bytes=97, multiprocessors=16)
    # Those of the device asked for, whichever is the current one.
    assert launcher.limits(there) == Limits(shared_bytes=1097, multiprocessors=1016)
    with stub.device(1):
        assert launcher.limits(here) == launcher.limits(there)
    assert len(stub.calls()) == 4
    launcher.limits(torch.device("cuda", 0))
    assert not stub.calls()


def test_code_is_loaded_while_a_stream_is_captured(stub: Stub) -> None:
    # The stand-in takes no module in the mode that a thread begins with; and it is back after.
    launcher.launch("small", 1, 32, 0, X, 1, X, 1)
    assert stub.library.stub_capture_mode() == 0
    stub.fail("load")
    launcher._of_devices()._modules.clear()
    launcher._of_devices()._functions.clear()
    with pytest.raises(RuntimeError, match="too many resources"):
        launcher.launch("small", 1, 32, 0, X, 1, X, 1)
    assert stub.library.stub_capture_mode() == 0


@pytest.mark.parametrize("call", ["retain", "bind", "load", "function", "set", "launch"])
def test_the_drivers_words_reach_the_user(stub: Stub, call: str) -> None:
    stub.fail(call)
    with pytest.raises(RuntimeError) as error:
        launcher.launch("other", 3, 64, 99_999, X)
    told = str(error.value)
    assert "CUDA kernel 'other', 3 blocks of 64 threads with 99999 bytes" in told
    assert told.endswith(": too many resources (CUDA error 701)")


def test_a_driver_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match="the CUDA driver cannot be loaded"):
        driver.Driver("libcuda.so.0")


def test_another_launcher_while_installed(stub: Stub) -> None:
    host = cuda_on_host.HostLauncher(NATIVE / "planted.cu")
    assert launcher.refusal() is not None
    with launcher.installed(host):
        assert launcher.refusal() is None
        assert launcher.limits(X.device) == cuda_on_host.H100
        with pytest.raises(RuntimeError, match=r"'other'.*no kernel other"):
            launcher.launch("other", 1, 32, 0, X)
    assert not stub.calls()
    launcher.launch("other", 1, 32, 0, X)
    assert stub.calls()


def refusal_with(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | RuntimeError
) -> str | None:
    def told() -> tuple[int, int]:
        if isinstance(capability, RuntimeError):
            raise capability
        return capability

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", told)
    monkeypatch.setattr(launcher, "driver", lambda: None)
    launcher._refusal.cache_clear()
    try:
        return launcher.refusal()
    finally:
        launcher._refusal.cache_clear()


def test_refusals_carry_a_remedy(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sources.kernel_files(sources.folder()):
        (image.IMAGES / sources.fatbin_name(sources.folder(), name)).touch()
    with monkeypatch.context() as patch:
        assert refusal_with(patch, (9, 0)) is None
        assert "compute capability 7.5; the kernels need 8.0" in (refusal_with(patch, (7, 5)) or "")
        told = refusal_with(patch, RuntimeError("The NVIDIA driver is too old.\nUpdate it")) or ""
        assert told.startswith("torch cannot use its CUDA device (The NVIDIA driver is too old); ")
        patch.setattr(image, "IMAGES", Path("nowhere"))
        patch.setattr(nvrtc, "installed", lambda: True)
        assert refusal_with(patch, (8, 0)) is None
        patch.setattr(nvrtc, "installed", lambda: False)
        told = refusal_with(patch, (8, 0)) or ""
        assert f"no compiled CUDA kernels ({', '.join(image.missing())})" in told
        assert "gram_values.cu" in told
        assert "pip install spectral-kernels[cupy]" in told
        patch.setenv(dispatch.ENVIRONMENT, "cuda")
        patch.setattr(dispatch, "_chosen", {})
        row = next(b for b in dispatch.BACKENDS if b.name == "cuda")
        assert dispatch.refusal(row, "cpu") == "runs on cuda, not on cpu"


class FakeNvrtc(ModuleType):
    """CuPy's module, with a compiler that returns its options."""

    class NVRTCError(RuntimeError):
        pass

    def __init__(self) -> None:
        super().__init__("nvrtc")
        self.compiled: list[tuple[str, ...]] = []

    def getVersion(self) -> tuple[int, int]:
        return 13, 0

    def createProgram(self, source: str, name: str, headers: object, names: object) -> str:
        assert (headers, names) == ((), ())
        return f"{name}: {len(source)}"

    def compileProgram(self, program: str, options: tuple[str, ...]) -> None:
        self.compiled.append(options)
        if program.startswith("broken"):
            raise self.NVRTCError

    def getCUBIN(self, program: str) -> bytes:
        return b"\x7fELF " + program.encode()

    def getProgramLog(self, program: str) -> str:
        return "error: expected a ';'"

    def destroyProgram(self, program: str) -> None:
        pass


@pytest.fixture
def fake_nvrtc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeNvrtc:
    fake = FakeNvrtc()
    cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    cuda.nvrtc = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


def test_without_an_image_nvrtc_compiles_once(
    stub: Stub, fake_nvrtc: FakeNvrtc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(image, "IMAGES", tmp_path / "none")
    launcher.launch("other", 1, 32, 0, X)
    assert stub.calls()[2] == "load 7f454c46"
    (options,) = fake_nvrtc.compiled
    assert set(options) == {*sources.OPTIONS, f"-I{sources.folder()}", "--gpu-architecture=sm_90"}
    code = nvrtc.cubin("gram_values.cu", (9, 0))
    assert len(fake_nvrtc.compiled) == 1
    (kept,) = (tmp_path / "cache/spectral_kernels").iterdir()
    assert kept.read_bytes() == code
    assert kept.name.endswith("-sm_90-nvrtc13.0.cubin")
    nvrtc.cubin("gram_values.cu", (8, 0))
    assert len(fake_nvrtc.compiled) == 2


def test_nvrtc_without_a_writable_cache(
    fake_nvrtc: FakeNvrtc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert nvrtc.cubin("gram_values.cu", (9, 0)).startswith(b"\x7fELF")


def test_what_nvrtc_says(
    fake_nvrtc: FakeNvrtc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda/broken.cu").write_text("void f() {")
    monkeypatch.setattr(sources, "folder", lambda: tmp_path)
    with pytest.raises(RuntimeError, match=r"cannot compile broken\.cu for sm_90: error: expected"):
        nvrtc.cubin("broken.cu", (9, 0))
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(RuntimeError, match=r"CuPy's NVRTC cannot make them.*pip install"):
        nvrtc.cubin("broken.cu", (9, 0))


def test_an_image_of_other_sources_is_not_loaded(tmp_path: Path) -> None:
    for name, text in {"cuda/a.cu": "1", "cuda/b.cu": "2", "cuda/d.cuh": "3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    names = [sources.fatbin_name(tmp_path, x) for x in ("a.cu", "b.cu")]
    assert len(set(names)) == 2
    (tmp_path / "cuda/b.cu").write_text("changed")
    assert sources.fatbin_name(tmp_path, "a.cu") == names[0]
    assert sources.fatbin_name(tmp_path, "b.cu") != names[1]
    (tmp_path / "cuda/d.cuh").write_text("changed")
    assert sources.fatbin_name(tmp_path, "a.cu") != names[0]


def test_parameters_are_packed_without_gaps() -> None:
    kernel = Kernel("k", "", "q2Pd")
    assert len(packed(kernel, (1, X, None, 2.0))) == 32
    with pytest.raises(struct.error):
        packed(kernel, (1, X, None))
