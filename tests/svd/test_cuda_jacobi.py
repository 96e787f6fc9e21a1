"""The Jacobi kernels of csrc/cuda on the host, through their adapters, against NumPy float64."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.runtime.cuda.table import Limits
from spectral_kernels.svd import cuda_backend
from spectral_kernels.svd.jacobi_plan import vectors_plan
from tests.support import cuda_on_host, matrices
from tests.support.cuda_on_host import H100, ROOT, HostLauncher, SanitizedLauncher
from tests.support.svd_checks import ALL, check_values, check_vectors

pytestmark = pytest.mark.skipif(cuda_on_host.COMPILER is None, reason="needs a C++ compiler")

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
REGISTERS = [(1, 1), (1, 7), (3, 2), (8, 8), (7, 16), (17, 5), (30, 2), (31, 29), (32, 32)]
# 8 lanes for a pair that hold 8 or 16 rows each, 16 and 32 lanes; rows that none holds.
SHARED = [(33, 33), (40, 1), (2, 64), (65, 9), (59, 128), (96, 64), (20, 140), (600, 7)]


@pytest.fixture
def host() -> Iterator[HostLauncher]:
    stand_in = HostLauncher()
    with launcher.installed(stand_in):
        yield stand_in


def small_device(shared_bytes: int) -> HostLauncher:
    return HostLauncher(limits=Limits(shared_bytes, 1))


def solve(A: torch.Tensor) -> sk.SVD:
    """Return the SVD of one matrix, and check it, that it is read only, and its values alone."""
    before = A.clone()
    (result,) = cuda_backend.svd([A])
    (values,) = cuda_backend.svdvals([A])
    assert torch.equal(A, before)
    check_values(result.S, A)
    check_values(values, A)
    check_vectors(result, A)
    return result


@pytest.mark.parametrize("name", [k for k, f in ALL.items() if max(f().shape) <= 70])
@FLOATS
def test_hard_matrices(name: str, dtype: torch.dtype, host: HostLauncher) -> None:
    solve(torch.from_numpy(ALL[name]()).to(dtype))


@pytest.mark.parametrize("shape", REGISTERS + SHARED, ids=str)
@FLOATS
def test_shapes(shape: tuple[int, int], dtype: torch.dtype, host: HostLauncher) -> None:
    solve(torch.randn(shape, dtype=dtype))
    family = "registers" if max(shape) <= 32 else "shared"
    assert host.launched[0].startswith(f"svd_{family}_f{8 * dtype.itemsize}_")
    assert host.launched[1].startswith("svdvals_registers") == (max(shape) <= 16)


@pytest.mark.parametrize("shape", [(50, 33), (33, 50), (48, 48)], ids=str)
@FLOATS
def test_v_in_global_memory(shape: tuple[int, int], dtype: torch.dtype) -> None:
    columns = min(shape)
    room = (columns * (max(shape) + 20) + 300) * dtype.itemsize
    plan = vectors_plan(*shape, dtype, room)
    assert plan is not None
    assert plan.leading[1] == 0
    whole = vectors_plan(*shape, dtype, H100.shared_bytes)
    assert whole is not None
    assert whole.leading[1] >= columns
    A = torch.randn(shape, dtype=dtype)
    with launcher.installed(HostLauncher()):
        (with_room,) = cuda_backend.svd([A])
    with launcher.installed(small_device(room)):
        # Only where V lies is another.
        (result,) = cuda_backend.svd([A])
        check_vectors(result, A)
        assert all(torch.equal(x, y) for x, y in zip(result, with_room, strict=True))
        deficient = torch.from_numpy(matrices.with_spectrum(*shape, torch.ones(5).numpy()))
        check_vectors(cuda_backend.svd([deficient.to(dtype)])[0], deficient.to(dtype))


@pytest.mark.parametrize("shape", [(3, 300, 33), (3, 5, 400), (2, 2, 40, 200)], ids=str)
@FLOATS
def test_a_long_side_is_made_short_first(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    A = torch.randn(shape, dtype=dtype)
    A.view(-1, *shape[-2:])[1] *= 1e30
    A.view(-1, *shape[-2:])[2:] *= 1e-30
    r = min(shape[-2:])
    with launcher.installed(small_device(18000 if r > 32 else 4000)):
        (result,) = cuda_backend.svd([A])
    flat = [x.reshape(-1, *x.shape[len(shape) - 2 :]) for x in (A, *result)]
    for a, *usv in zip(*flat, strict=True):
        check_values(usv[1], a)
        check_vectors(sk.SVD(usv[0], usv[1], usv[2]), a)
    assert result.U.mT.is_contiguous()


def test_a_long_side_with_nan_stays_in_its_matrix() -> None:
    A = torch.randn(3, 300, 20)
    A[1, 7, 3] = float("nan")
    with launcher.installed(small_device(4000)):
        (result,) = cuda_backend.svd([A])
    assert all(x[1].isnan().all() for x in result)
    for i in (0, 2):
        check_vectors(sk.SVD(*(x[i] for x in result)), A[i])


@FLOATS
def test_too_large_goes_elsewhere(dtype: torch.dtype) -> None:
    A = torch.randn(60, 50, dtype=dtype)
    host = small_device(6000)
    with launcher.installed(host):
        (result,) = cuda_backend.svd([A])
    assert host.launched == []
    check_values(result.S, A)
    check_vectors(result, A)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(8, 6), (30, 32), (40, 35)], ids=str)
def test_half_precision(shape: tuple[int, int], dtype: torch.dtype, host: HostLauncher) -> None:
    A = torch.randn(shape).to(dtype)
    result = solve(A)
    same = cuda_backend.svd([A.float()])[0]
    assert all(torch.equal(x, y) for x, y in zip(result, same, strict=True))


def test_float16_extremes(host: HostLauncher) -> None:
    solve(torch.tensor([[65504.0, 6e-8, -65504.0], [0.0, 6.1e-5, 1.0]], dtype=torch.float16))


@pytest.mark.parametrize("shape", [(7, 5), (36, 20)], ids=str)
@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
def test_layouts(shape: tuple[int, int], dtype: torch.dtype, host: HostLauncher) -> None:
    base = torch.randn(shape).to(dtype)
    contiguous = solve(base)
    for A in matrices.layouts(base).values():
        # The order of reading is another, the numbers are not.
        assert all(torch.equal(x, y) for x, y in zip(solve(A), contiguous, strict=True))


@pytest.mark.parametrize("shape", [(6, 5), (5, 16), (20, 30), (35, 9)], ids=str)
def test_batches_are_matrices_one_by_one(shape: tuple[int, int], host: HostLauncher) -> None:
    A = torch.randn(2, 3, 7, *shape).permute(1, 0, 2, 4, 3).contiguous().mT
    expanded = A[0, 0, 0].expand(3, 5, *shape)
    batch, copies = cuda_backend.svd([A, expanded])
    values = cuda_backend.svdvals([A])[0]
    for index in [(0, 0, 0), (2, 1, 6), (1, 0, 3)]:
        alone = cuda_backend.svd([A[index]])[0]
        assert all(torch.equal(x[index], y) for x, y in zip(batch, alone, strict=True))
        check_vectors(alone, A[index])
        check_values(values[index], A[index])
    assert torch.equal(copies.U[2, 4], batch.U[0, 0, 0])


def test_a_launch_for_each_shape_and_type(host: HostLauncher) -> None:
    shapes = [(4, 4), (36, 3), (4, 4), (0, 5), (2, 4, 4), (36, 3), (0, 4, 4), (9, 1)]
    tensors = [torch.randn(s) for s in shapes] + [torch.randn(4, 4).double()]
    results = cuda_backend.svd(tensors)
    assert host.launched == [
        "svd_registers_f32_8", "svd_shared_f32_8x8", "svd_registers_f32_16", "svd_registers_f64_8",
    ]  # fmt: skip
    values = cuda_backend.svdvals(tensors)
    for A, usv, S in zip(tensors, results, values, strict=True):
        assert usv.S.shape == S.shape == (*A.shape[:-2], min(A.shape[-2:]))
        assert usv.U.shape == (*A.shape[:-1], S.shape[-1])
        assert usv.Vh.shape == (*S.shape, A.shape[-1])
        if A.dim() == 2 and A.numel():
            check_vectors(usv, A)
            check_values(S, A)
    check_vectors(sk.SVD(*(x[1] for x in results[4])), tensors[4][1])
    assert cuda_backend.svd([]) == []
    assert cuda_backend.svdvals([]) == []


def test_more_batches_than_a_launch_takes(host: HostLauncher) -> None:
    tensors = [torch.randn(1 + i % 3, 3, 3) for i in range(85)]
    results = cuda_backend.svd(tensors)
    assert host.launched == ["svd_registers_f32_8"] * 3
    for A, usv in zip(tensors, results, strict=True):
        check_vectors(sk.SVD(*(x[-1] for x in usv)), A[-1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (15, 15), (30, 32), (40, 6), (6, 40)], ids=str)
def test_nan_stays_in_its_matrix(bad: float, shape: tuple[int, int], host: HostLauncher) -> None:
    A = torch.randn(5, *shape)
    clean = cuda_backend.svd([A])[0]
    A[3, shape[0] // 2, 1] = bad
    result, S = cuda_backend.svd([A])[0], cuda_backend.svdvals([A])[0]
    assert S[3].isnan().all()
    assert S[[0, 1, 2, 4]].isfinite().all()
    for x, y in zip(result, clean, strict=True):
        assert x[3].isnan().all()
        assert all(torch.equal(x[i], y[i]) for i in (0, 1, 2, 4))


SANITIZED = {
    "registers": lambda: torch.randn(3, 9, 12),
    "registers, two rows": lambda: torch.randn(9, 7) * (torch.arange(9) % 5 == 1)[:, None],
    "shared": lambda: torch.randn(2, 34, 13),
    "shared, wide": lambda: torch.randn(10, 35, dtype=torch.float64),
    "shared, two rows": lambda: torch.randn(36, 9) * (torch.arange(36) % 18 == 7)[:, None],
    "shared, zero": lambda: torch.zeros(33, 6),
    "shared, NaN": lambda: torch.full((35, 9), float("nan")),
    "shared, 16 lanes": lambda: torch.randn(130, 6),
    "shared, rows that no lane holds": lambda: torch.randn(520, 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
@pytest.mark.parametrize("case", SANITIZED)
def test_sanitizers(case: str, sanitizer: str) -> None:
    A = SANITIZED[case]()
    with launcher.installed(HostLauncher()):
        (plain,) = cuda_backend.svd([A])
    with launcher.installed(SanitizedLauncher(sanitizer)):
        (result,) = cuda_backend.svd([A])
    for x, y in zip(result, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-4, equal_nan=True)
    assert not plain.U.isnan().any() or "NaN" in case


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_sanitizers_with_v_in_global_memory(sanitizer: str) -> None:
    A = torch.randn(2, 40, 17)
    limits = Limits(17 * 44 * 4 + 600, 1)
    with launcher.installed(SanitizedLauncher(sanitizer, limits=limits)):
        (result,) = cuda_backend.svd([A])
    for i in range(2):
        check_vectors(sk.SVD(*(x[i] for x in result)), A[i])


INCLUDE = re.compile(r'^#include "(cuda/jacobi\w*\.cuh)"$', re.MULTILINE)


def inlined(source: str) -> str:
    """Return the text of a kernel with the Jacobi headers in it, each once."""
    seen: set[str] = set()

    def text(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        body = (ROOT / "csrc" / file).read_text().replace("#pragma once\n", "")
        return INCLUDE.sub(lambda found: text(found[1]), body)

    return text(source)


@pytest.mark.slow
@pytest.mark.parametrize(
    "barrier",
    [
        "    if (round < players - 2) __syncthreads();",
        "s.products()[j] = sum;\n  });\n  __syncthreads();",
    ],
    ids=["between rounds", "before a projection"],
)
def test_a_missing_barrier_is_found(barrier: str, tmp_path: Path) -> None:
    source = inlined("cuda/jacobi_shared.cu")
    assert source.count(barrier) == 1
    without = re.sub(r"(if \(.*\) )?__syncthreads\(\);", "", barrier)
    planted = tmp_path / "jacobi_shared.cu"
    planted.write_text(source.replace(barrier, without))
    # Columns to turn, and others to complete.
    A = torch.randn(36, 11) * (torch.arange(11) % 2 == 0)
    with (
        launcher.installed(SanitizedLauncher("thread", planted)),
        pytest.raises(RuntimeError, match="data race"),
    ):
        cuda_backend.svd([A])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("shape", [(33, 33), (64, 64), (100, 50), (110, 110), (150, 90)], ids=str)
def test_neighbouring_pairs_read_different_banks(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    plan = vectors_plan(*shape, dtype, H100.shared_bytes)
    assert plan is not None
    lanes = int(plan.kernel.split("_")[-1].split("x")[0])
    # What one access serves: a warp of 4-byte words, half a warp of 8-byte ones.
    together = 128 // dtype.itemsize
    for ld, rows in zip(plan.leading, (max(shape), min(shape)), strict=True):
        assert ld >= rows
        addresses = [k // lanes * ld + k % lanes for k in range(together)]
        assert len({x % together for x in addresses}) == together


def test_small_problems_of_wide_blocks_do_not_wait() -> None:
    """The widest block of rsvd and of leading triplets is 128 columns."""
    here = torch.device("cuda")
    for room in (H100.shared_bytes, 163 << 10):
        with launcher.installed(HostLauncher(limits=Limits(room, 1))):
            for side in (1, 16, 32, 33, 112, 128):
                assert not cuda_backend.svd_waits(side, side, torch.float64, here)
            assert not cuda_backend.svd_waits(4000, 16, torch.float16, here)
            assert cuda_backend.svd_waits(300, 300, torch.float64, here)
    with launcher.installed(HostLauncher(limits=Limits(99 << 10, 1))):
        assert cuda_backend.svd_waits(128, 128, torch.float64, here)


def test_what_fits() -> None:
    def fits(m: int, n: int, dtype: torch.dtype, limit: int = H100.shared_bytes) -> bool | None:
        """Whether V is in shared memory too; None: not even W is."""
        plan = vectors_plan(m, n, dtype, limit)
        return None if plan is None else plan.leading[1] > 0

    f32, f64, a100 = torch.float32, torch.float64, 163 << 10
    assert [fits(n, n, f32) for n in (33, 160, 170, 220, 236, 240)] == [
        True, True, False, False, False, None,
    ]  # fmt: skip
    assert [fits(n, n, f64) for n in (33, 110, 120, 160, 170)] == [True, True, False, False, None]
    assert [fits(512, 59, f32), fits(59, 512, f32), fits(1000, 59, f32)] == [True, True, None]
    assert [fits(n, n, f32, a100) for n in (128, 190, 220)] == [True, False, None]
