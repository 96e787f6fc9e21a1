"""Singular values by the CUDA kernels, which run on the host here, within the numerics contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.rank import op as rank_op
from spectral_kernels.rank import truth as rank_reference
from spectral_kernels.runtime.cuda import launcher
from spectral_kernels.runtime.cuda.table import Limits
from spectral_kernels.runtime.numerics import default_rtol
from spectral_kernels.svd import cuda_backend, cuda_values
from spectral_kernels.svd.cuda_values_plan import plan
from tests.support import matrices
from tests.support.cuda_on_host import COMPILER, H100, HostLauncher, SanitizedLauncher
from tests.support.svd_checks import ALL, check_values

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

FLOATS = {"fp32": torch.float32, "fp64": torch.float64}
SHAPES = [(1, 1), (1, 7), (5, 3), (33, 33), (64, 64), (59, 128), (128, 512), (200, 200), (220, 1)]


@pytest.fixture
def on_host() -> Iterator[HostLauncher]:
    host = HostLauncher()
    with launcher.installed(host):
        yield host


def values(A: torch.Tensor) -> torch.Tensor:
    (S,) = cuda_values.svdvals([A])
    return S


def check_table(table: torch.Tensor, S: torch.Tensor, shape: tuple[int, int]) -> None:
    truth = rank_reference.summarize(S.double().numpy(), *shape, default_rtol(*shape, S.dtype))
    np.testing.assert_allclose(table.numpy(), np.stack(truth[1:]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_shapes(shape: tuple[int, int], dtype: str, on_host: HostLauncher) -> None:
    A = torch.randn(shape, dtype=FLOATS[dtype])
    (S,), (table,) = cuda_values.svdvals_with_tables([A], -1.0)
    check_values(S, A)
    check_table(table, S, shape)
    found = plan(A.dtype, *shape, H100.shared_bytes)
    assert on_host.launched == ([found.kernel] if found else [])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", FLOATS)
def test_matrices_that_break_solvers(name: str, dtype: str, on_host: HostLauncher) -> None:
    A = torch.from_numpy(np.ascontiguousarray(ALL[name]())).to(FLOATS[dtype])
    check_values(values(A), A)


# One shape for each kernel, at and beside the edges of its lanes.
KERNELS = {
    "bidiagonal_float_1": [(32, 32), (31, 30)],
    "bidiagonal_float_2": [(33, 1), (64, 63)],
    "bidiagonal_float_4": [(65, 65), (128, 20)],
    "bidiagonal_float_8": [(129, 33), (256, 17)],
    "bidiagonal_double_1": [(32, 31), (7, 32)],
    "bidiagonal_double_2": [(33, 33), (64, 17)],
    "bidiagonal_double_4": [(65, 49), (128, 2)],
    "bidiagonal_double_8": [(129, 33), (17, 256)],
    "bidiagonal_double_16": [(257, 40), (512, 3)],
    "gram_values_1": [(257, 32), (1, 300)],
    "gram_values_2": [(257, 33), (64, 300)],
    "gram_values_4": [(257, 65), (300, 128)],
    "gram_values_6": [(257, 129), (257, 167)],
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_edges_of_the_lanes(kernel: str, on_host: HostLauncher) -> None:
    dtype = torch.float64 if "double" in kernel else torch.float32
    for shape in KERNELS[kernel]:
        A = torch.randn(shape, dtype=dtype)
        check_values(values(A), A)
    assert set(on_host.launched) == {kernel}


@pytest.mark.parametrize("long", [60, 300])
def test_spectra_without_squares(long: int, on_host: HostLauncher) -> None:
    """Repeated, clustered and falling values, from the matrix itself and from its Gram matrix."""
    spectra = {
        "repeated": np.repeat([3.0, 1.0, 0.5], 16),
        "all equal": np.ones(48),
        "clusters": np.repeat([1.0, 0.5, 1e-3], 16) * (1 + 1e-7 * np.arange(48)),
        "falling": np.logspace(0, -12, 48),
        "rank 3": np.array([3.0, 2.0, 1.0]),
    }
    for sigma in spectra.values():
        A = torch.from_numpy(matrices.with_spectrum(long, 48, np.asarray(sigma)))
        for dtype in FLOATS.values():
            check_values(values(A.to(dtype)), A.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(8, 8), (40, 30), (30, 300)])
def test_half_precision(dtype: torch.dtype, shape: tuple[int, int], on_host: HostLauncher) -> None:
    A = torch.randn(shape).to(dtype)
    check_values(values(A), A)


@pytest.mark.parametrize("shape", [(20, 33), (40, 290)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts(shape: tuple[int, int], dtype: str, on_host: HostLauncher) -> None:
    base = torch.randn(shape, dtype=FLOATS[dtype])
    for A in matrices.layouts(base).values():
        # Torch's products and QR, in front of the kernel, may round strides differently.
        assert_equal = plan(A.dtype, *shape, H100.shared_bytes).given == "matrix"
        S = values(A)
        check_values(S, base)
        assert not assert_equal or torch.equal(S, values(base))


def test_batches_wherever_they_lie(on_host: HostLauncher) -> None:
    """One launch for each shape and type, and each result that of the matrix alone, bit by bit."""
    one = torch.randn(6, 2, 20, 12)
    inputs = [
        one[0], one[1:5:2], one.mT[2, 0].mT, one[3].flip(0), one[:0], torch.randn(12, 20),
        one[0, 0].expand(3, 20, 12), torch.randn(20, 12, dtype=torch.float64),
    ]  # fmt: skip
    together, tables = cuda_values.svdvals_with_tables(inputs, 0.1)
    assert len(on_host.launched) == 3
    for A, S, table in zip(inputs, together, tables, strict=True):
        assert S.shape == (*A.shape[:-2], 12)
        assert table.shape == (*A.shape[:-2], 7)
        for a, s, row in zip(
            A.reshape(-1, *A.shape[-2:]), S.reshape(-1, 12), table.reshape(-1, 7), strict=True
        ):
            assert torch.equal(values(a), s)
            assert row[3] == (s > 0.1 * s[0]).sum()


def test_more_batches_than_one_launch_takes(on_host: HostLauncher) -> None:
    inputs = [torch.randn(3, 3) for _ in range(85)]
    for A, S in zip(inputs, cuda_values.svdvals(inputs), strict=True):
        check_values(S, A)
    assert len(on_host.launched) == 3


@pytest.mark.parametrize("shape", matrices.EMPTY, ids=str)
def test_empty(shape: tuple[int, ...], on_host: HostLauncher) -> None:
    (S,), (table,) = cuda_values.svdvals_with_tables([torch.empty(shape)], -1.0)
    assert S.shape == (*shape[:-2], min(shape[-2:]))
    assert table.shape == (*shape[:-2], 7)
    assert not table.any()
    assert on_host.launched == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("dtype", "shape"), [("fp32", (24, 24)), ("fp32", (270, 40)), ("fp64", (9, 33)),
                         ("fp64", (700, 9)), ("fp32", (270, 180)), ("fp64", (180, 190))]
)  # fmt: skip
def test_nan_stays_in_its_matrix(
    bad: float, dtype: str, shape: tuple[int, int], on_host: HostLauncher
) -> None:
    A = torch.randn(3, *shape, dtype=FLOATS[dtype])
    A[1, shape[0] // 2, -1] = bad
    (S,), (table,) = cuda_values.svdvals_with_tables([A], -1.0)
    assert S[1].isnan().all()
    assert table[1].isnan().all()
    assert table[::2].isfinite().all()
    check_values(S[0], A[0])
    check_values(S[2], A[2])


@pytest.mark.parametrize("shape", [(30, 20), (300, 40)])
def test_zero_and_equal_values(shape: tuple[int, int], on_host: HostLauncher) -> None:
    for dtype in FLOATS.values():
        (S,), (table,) = cuda_values.svdvals_with_tables([torch.zeros(shape, dtype=dtype)], -1.0)
        assert not S.any()
        assert not table.any()
        A = torch.zeros(shape, dtype=dtype)
        A.diagonal().fill_(3.0)
        # Rounding to float32 makes them one number; in float64 they are neighbours at most.
        assert values(A)[0] - values(A)[-1] <= (4.5e-16 if dtype == torch.float64 else 0.0)
        one = torch.zeros(shape, dtype=dtype)
        one[3, 5] = 7.0
        assert values(one)[0] == 7.0
        # The root of the resolution of Sturm counts would be 2e-8.
        assert values(one)[1] <= 7e-9


def test_two_runs_are_equal_bit_by_bit(on_host: HostLauncher) -> None:
    for shape in ((64, 64), (300, 50)):
        A = torch.randn(shape)
        assert torch.equal(values(A), values(A))


def test_plans_fit_the_device() -> None:
    """Whole warps, shared memory within the limit, and a kernel wherever the issue wants one."""
    for dtype in FLOATS.values():
        for m in (1, 3, 31, 64, 65, 129, 220, 256, 300, 512, 4000):
            for n in (1, 2, 33, 64, 100, 128, 167, 220):
                found = plan(dtype, m, n, H100.shared_bytes)
                if found is None:
                    continue
                assert found.shared_bytes <= H100.shared_bytes
                assert 32 <= found.threads <= 512
                assert found.threads % 32 == 0
    assert plan(torch.float32, 220, 220, H100.shared_bytes) is not None
    assert plan(torch.float32, 3000, 167, H100.shared_bytes) is not None
    assert plan(torch.float64, 3000, 160, H100.shared_bytes) is not None
    # Eight blocks of 64 x 64 on a multiprocessor, with the kilobyte that a block costs besides.
    assert 8 * (plan(torch.float32, 64, 64, H100.shared_bytes).shared_bytes + 1024) < 228 << 10


def test_a_device_with_less_shared_memory() -> None:
    """What fits an H100's 227 KB and not the 163 KB of an A100 goes to torch there."""
    small = HostLauncher(limits=Limits(shared_bytes=163 << 10, multiprocessors=108))
    for shape in ((200, 200), (300, 160)):
        assert plan(torch.float32, *shape, H100.shared_bytes) is not None
        A = torch.randn(shape)
        with launcher.installed(small):
            check_values(values(A), A)
    assert small.launched == []


# Every template and every way out of a kernel, small enough for the sanitizers' hundredfold cost.
# Lanes and columns without numbers of their own are in all of them.
RACY: list[Any] = [
    *[("fp32", shape) for shape in ((2, 40, 40), (20, 9), (66, 20), (130, 20), (1, 1))],
    *[("fp64", shape) for shape in ((2, 40, 33), (20, 9), (66, 20), (130, 20), (20, 260))],
    *[("fp32", shape) for shape in ((260, 9), (2, 260, 36), (66, 260))],
]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_no_race_and_no_stray_access(sanitizer: str) -> None:
    with launcher.installed(SanitizedLauncher(sanitizer)):
        for dtype, shape in RACY:
            A = torch.randn(shape, dtype=FLOATS[dtype])
            if A.dim() == 3:
                A[1] = float("nan") if shape[1] == 40 else 0.0
            (S,), (table,) = cuda_values.svdvals_with_tables([A], -1.0)
            first = A[0] if A.dim() == 3 else A
            check_values(S[0] if A.dim() == 3 else S, first)
            assert table.shape[-1] == 7


def test_summaries_take_the_solvers_own_tables(
    on_host: HostLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_op.dispatch, "backend", lambda operation, device: cuda_backend)
    A = torch.randn(3, 20, 12)
    summary = sk.spectral_summary(A)
    rank = sk.effective_rank([A[0], A[1]], normalized=True)
    assert on_host.launched == ["bidiagonal_float_1"] * 2
    monkeypatch.undo()
    expected = sk.spectral_summary(A)
    for got, want in zip(summary, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(rank), expected.effective_rank[:2] / 12)


@pytest.mark.gpu
def test_summaries_on_a_device() -> None:
    """Blocks of one launch run at the same time there; the summaries are those of the host."""
    if launcher.refusal() is not None:
        pytest.skip(str(launcher.refusal()))
    for shape in ((1000, 64, 64), (40, 59, 128), (40, 128, 512), (40, 200, 200), (9, 300, 1)):
        for dtype in FLOATS.values():
            A = torch.randn(shape, dtype=dtype)
            A[5] = float("nan")
            got = sk.spectral_summary(A.cuda())
            want = sk.spectral_summary(A)
            size = want.spectral_norm.nan_to_num(1.0)[:, None]
            limit = 32 * torch.finfo(dtype).eps
            error = (got.singular_values.cpu() - want.singular_values) / size
            assert error.nan_to_num().abs().max() <= limit
            for x, y in zip(got[1:], want[1:], strict=True):
                torch.testing.assert_close(x.cpu(), y, rtol=1e-5, atol=1e-5, equal_nan=True)
