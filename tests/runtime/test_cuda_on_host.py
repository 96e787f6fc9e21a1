"""The host's stand-in for the device: what it computes, and that it finds every planted fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spectral_kernels.runtime.cuda.table import Kernel
from spectral_kernels.runtime.numerics import DTYPE_CODES
from tests.support import cuda_on_host
from tests.support.cuda_on_host import H100, HostLauncher, SanitizedLauncher

pytestmark = pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="needs a C++ compiler")

PLANTED = Path(__file__).parents[1] / "native/planted.cu"


def run(host: HostLauncher, name: str, fault: int) -> torch.Tensor:
    blocks = 2 if name == "a_block_each" else 1
    y = torch.full((64,), float("nan"), dtype=torch.float64)
    host.launch(Kernel(name, "planted.cu", "Pq"), blocks, 64, 512, (y, fault))
    return y


RIGHT = {
    "exchange": torch.arange(63.0, -1.0, -1.0),
    "exchange_in_warp": torch.arange(64.0) + torch.tensor([1.0, -1.0]).repeat(32),
    "first_warp": torch.arange(32.0).repeat(2),
    "two_rounds": 2 * torch.arange(63.0, -1.0, -1.0) + 1,
    "a_block_each": torch.tensor([1.0, 1.0] + [float("nan")] * 62),
    "meetings": torch.full((64,), 32.0),
    "edges": torch.ones(64),
}
FAULTS = {
    "a missing barrier": ("exchange", 1),
    "a barrier of the warp for one of the block": ("exchange", 2),
    "a shuffle for a barrier": ("exchange_in_warp", 1),
    "meetings of two warps apart": ("first_warp", 1),
    "a write that does not wait for reads": ("two_rounds", 1),
    "two blocks that write one entry": ("a_block_each", 1),
}


@pytest.fixture(params=[None, "thread", "address"], ids=["plain", "thread", "address"])
def every_host(request: pytest.FixtureRequest) -> HostLauncher:
    sanitizer = request.param
    return HostLauncher(PLANTED) if sanitizer is None else SanitizedLauncher(sanitizer, PLANTED)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name: str, every_host: HostLauncher) -> None:
    got = run(every_host, name, 0)
    torch.testing.assert_close(got, RIGHT[name].double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_races_are_found(fault: str) -> None:
    with pytest.raises(RuntimeError, match="data race"):
        run(SanitizedLauncher("thread", PLANTED), *FAULTS[fault])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (1, "in vain: 0-31 at __syncthreads, 32-63 ended in block 0"),
        (2, "in vain: 0-4 at __syncthreads, 5-5 ended, 6-63 at __syncthreads"),
        (3, "in vain: 0-31 at __syncthreads, 32-63 ended"),
        (4, "a shuffle reads a lane that its mask leaves out"),
        (5, "a lane is not in the mask that it gives"),
    ],
)
def test_meetings_that_cannot_be_are_told(fault: int, message: str) -> None:
    for host in (HostLauncher(PLANTED), SanitizedLauncher("address", PLANTED)):
        with pytest.raises(RuntimeError, match=message):
            run(host, "meetings", fault)


def test_edges_of_buffers() -> None:
    with pytest.raises(RuntimeError, match="a write past the end of shared memory"):
        run(HostLauncher(PLANTED), "edges", 1)
    for fault in (1, 2):
        with pytest.raises(RuntimeError, match="heap-buffer-overflow"):
            run(SanitizedLauncher("address", PLANTED), "edges", fault)


def test_shared_memory_starts_as_nan(every_host: HostLauncher) -> None:
    assert run(every_host, "edges", 3).isnan().all()


def test_what_a_device_would_refuse(every_host: HostLauncher) -> None:
    y = torch.zeros(64, dtype=torch.float64)

    def launch(name: str, fields: str, grid: int, block: int, *arguments: object) -> None:
        every_host.launch(Kernel(name, "planted.cu", fields), grid, block, 512, arguments)  # type: ignore[arg-type]

    for block in (33, 96, 0):
        with pytest.raises(RuntimeError, match=f"block {block}; expected whole warps, at most 64"):
            launch("edges", "Pq", 1, block, y, 0)
    with pytest.raises(RuntimeError, match="parameters of 24 bytes; the struct has 16"):
        launch("edges", "Pqq", 1, 64, y, 0, 0)
    with pytest.raises(RuntimeError, match="no kernel nothing"):
        launch("nothing", "Pq", 1, 64, y, 0)
    with pytest.raises(AssertionError):
        every_host.launch(Kernel("edges", "", "Pq"), 1, 64, H100.shared_bytes + 1, (y, 0))


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
def test_operations_of_a_warp_and_loads(dtype: torch.dtype, every_host: HostLauncher) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, 7).short()
    narrow = dtype in (torch.float16, torch.bfloat16)
    data = bits.view(dtype) if narrow else torch.randn(500, dtype=dtype)
    loaded = torch.full((data.numel(),), 7.0, dtype=torch.float64)
    results = torch.full((2, 18, 64), -1)
    kernel = Kernel("operations", "planted.cu", "PPPqq")
    arguments = (data, loaded, results, DTYPE_CODES[dtype], data.numel())
    every_host.launch(kernel, 2, 64, 0, arguments)
    torch.testing.assert_close(loaded, data.double(), rtol=0, atol=0, equal_nan=True)
    t = torch.arange(64)
    lane, first = t % 32, t - t % 32
    ballot = sum(1 << i for i in range(0, 32, 3))
    signed = ballot - (1 << 32) if ballot >= 1 << 31 else ballot
    for block, got in enumerate(results):
        want = [
            first + 5, t // 8 * 8 + (lane + 1) % 8, t ^ 4,
            # Earlier segments may be read, later ones not.
            torch.where(lane // 8 % 2 == 1, t - 8, t),
            torch.where(lane < 29, t + 3, t), torch.where(lane % 16 < 13, t + 3, t),
            torch.where(lane >= 2, t - 2, t), torch.where(lane % 4 >= 2, t - 2, t),
            signed, t // 32, 1 - t // 32, 13, 1, 0,
            first * 32 + 496, torch.where(t < 32, 100, -32), block * 1000 + 200 + 64,
            first + 2 + t % 2,
        ]  # fmt: skip
        for row, expected in zip(got, want, strict=True):
            assert torch.equal(row, torch.as_tensor(expected).expand(64)), (row, expected)
