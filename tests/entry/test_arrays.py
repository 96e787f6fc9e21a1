"""The door: kinds, memory sharing, lists, and arrays that are awkward to read."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.entry import arrays
from spectral_kernels.svd import truth


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numpy_in_numpy_out(dtype: str, backend: str) -> None:
    A = np.random.default_rng(0).standard_normal((3, 20, 12)).astype(dtype)
    wide = np.float64 if dtype == "float64" else np.float32
    S, factors, summary = sk.svdvals(A), sk.svd(A), sk.spectral_summary(A)
    for x in (S, *factors, *summary):
        assert type(x) is np.ndarray
        assert x.dtype == wide
    np.testing.assert_allclose(S, truth.svdvals(A), rtol=1e-5)
    assert isinstance(factors, sk.SVD)
    assert isinstance(summary, sk.SpectralSummary)


def test_no_copy_of_plain_numpy_and_torch() -> None:
    A = np.zeros((4, 3), dtype=np.float32)
    assert arrays.to_tensor(A).data_ptr() == A.ctypes.data
    assert arrays.to_tensor(A.T).data_ptr() == A.ctypes.data
    assert arrays.to_tensor(A[::2, 1:]).data_ptr() == A[::2, 1:].ctypes.data
    t = torch.zeros(2, 2)
    assert arrays.to_tensor(t) is t


def test_read_only_numpy_without_copy_or_warning(backend: str) -> None:
    A = np.random.default_rng(1).standard_normal((9, 6))
    expected = truth.svdvals(A)
    A.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert arrays.to_tensor(A).data_ptr() == A.ctypes.data
        np.testing.assert_allclose(sk.svdvals(A), expected, rtol=1e-12)
        np.testing.assert_allclose(sk.svd(np.broadcast_to(A, (2, 9, 6))).S[1], expected, rtol=1e-12)
    assert not A.flags.writeable


def test_read_only_memory_outlives_the_caller() -> None:
    def make() -> torch.Tensor:
        A = np.arange(6.0).reshape(2, 3)
        A.setflags(write=False)
        return arrays.to_tensor(A)

    tensor = make()
    # Enough allocations to reuse the memory, had it been freed.
    junk = [np.full((2, 3), -1.0) for _ in range(100)]
    assert tensor.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    del junk


@pytest.mark.parametrize(
    "view",
    [
        lambda A: A[::-1],
        lambda A: A[:, ::-1],
        lambda A: A[::-2, ::-1],
        lambda A: np.asfortranarray(A),
        lambda A: A.T,
        lambda A: A.astype(">f8"),
        lambda A: np.frombuffer(b"x" + A.tobytes(), np.uint8)[1:].view(A.dtype).reshape(A.shape),
    ],
    ids=["rows", "columns", "both", "fortran", "transposed", "big-endian", "unaligned"],
)
def test_awkward_numpy(view, backend: str) -> None:
    A = view(np.random.default_rng(2).standard_normal((40, 33)))
    before = A.copy()
    np.testing.assert_allclose(sk.svdvals(A), truth.svdvals(A), rtol=1e-11)
    np.testing.assert_array_equal(A, before)


def test_strides_that_are_no_multiple_of_the_item() -> None:
    record = np.zeros((5, 4), dtype=[("flag", "i2"), ("x", "f4")])
    record["x"] = np.random.default_rng(3).standard_normal((5, 4))
    np.testing.assert_allclose(sk.svdvals(record["x"]), truth.svdvals(record["x"]), rtol=1e-5)


def test_lists_keep_the_kind_of_each_element(backend: str) -> None:
    A = [np.eye(3), torch.eye(2), np.zeros((4, 2), np.float32)]
    S = sk.svdvals(A)
    assert [arrays.kind(x) for x in S] == ["numpy", "torch", "numpy"]
    assert [x.tolist() for x in S] == [[1, 1, 1], [1, 1], [0, 0]]
    U = sk.svd(tuple(A))[2].U
    assert U.dtype == np.float32
    assert sk.effective_rank([]) == []


def test_parameters_and_subclasses() -> None:
    layer = torch.nn.Linear(6, 4)
    torch.testing.assert_close(
        sk.svdvals(layer.weight).detach(), torch.linalg.svdvals(layer.weight.detach())
    )


def test_conjugate_views_are_read_as_they_look() -> None:
    z = torch.randn(5, 4, dtype=torch.complex64)
    negative = z.conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(sk.svdvals(negative), torch.linalg.svdvals(-z.imag))


def test_import_needs_torch_and_numpy_alone() -> None:
    code = (
        "import sys, spectral_kernels\n"
        "heavy = ['triton', 'cupy', 'matplotlib', 'pandas', 'plotly', 'jinja2', 'tqdm', 'scipy',"
        " 'sklearn', 'spectral_monitor']\n"
        "sys.exit(', '.join(n for n in heavy if n in sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded_by_torch = "import sys, torch, numpy; print(*sys.modules)"
    already = subprocess.run(
        [sys.executable, "-c", loaded_by_torch], capture_output=True, text=True, check=True
    ).stdout.split()
    extra = [n for n in result.stderr.strip().split(", ") if n and n not in already]
    assert not extra


def test_face_lists_what_it_has() -> None:
    for name in sk.__all__:
        if name not in ("Recorder", "SpectralFrame", "SpectralMonitor"):
            assert getattr(sk, name) is not None
        assert name in dir(sk)
    with pytest.raises(AttributeError, match="no attribute 'svdd'"):
        sk.svdd  # noqa: B018


@pytest.mark.gpu
def test_cupy_in_cupy_out() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    A = cupy.random.standard_normal((2, 20, 12)).astype(cupy.float32)
    expected = truth.svdvals(cupy.asnumpy(A))
    for x in (sk.svdvals(A), sk.svd(A).S, sk.spectral_summary(A).singular_values):
        assert isinstance(x, cupy.ndarray)
        np.testing.assert_allclose(cupy.asnumpy(x), expected, rtol=1e-5)
    bounds = sk.bounds_from_residuals(A, *sk.svd(A))
    assert isinstance(bounds, cupy.ndarray)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_stay_on_their_device() -> None:
    A = torch.randn(3, 30, 20, device="cuda")
    result = sk.svd(A)
    assert result.S.device == A.device
    expected = truth.svdvals(A.cpu().numpy())
    np.testing.assert_allclose(result.S.cpu().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(sk.rsvd(A, 20).S.cpu().numpy(), expected, rtol=1e-4)
