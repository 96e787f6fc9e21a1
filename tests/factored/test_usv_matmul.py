"""decompose, recompose, usv_matmul and the break-even rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import spectral_kernels as sk
from spectral_kernels.factored import folding, gradients, matmul, torch_backend, truth
from tests.support import matrices


def factors(m: int, n: int, k: int, batch=(), *, diagonal: bool, dtype=torch.float64):
    U = torch.randn(*batch, m, k, dtype=torch.float64)
    Sigma = torch.randn(*batch, *((k,) if diagonal else (k, k)), dtype=torch.float64)
    Vh = torch.randn(*batch, k, n, dtype=torch.float64)
    return [x.to(dtype) for x in (U, Sigma, Vh)]


def as_numpy(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [x.double().numpy() for x in tensors]


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (9, 9), (1, 5), (70, 40)], ids=str)
@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
def test_decompose_recompose(shape: tuple[int, int], dtype: torch.dtype, backend: str) -> None:
    A = torch.randn(2, *shape).to(dtype)
    d = sk.decompose(A)
    r = min(shape)
    assert [tuple(x.shape) for x in d] == [(2, shape[0], r), (2, r, r), (2, r, shape[1])]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = 60 * torch.finfo(wide).eps
    torch.testing.assert_close(sk.recompose(*d), A.to(wide), rtol=0, atol=tolerance)
    torch.testing.assert_close(
        sk.recompose(d.U, d.Sigma.diagonal(dim1=-2, dim2=-1), d.Vh),
        A.to(wide),
        rtol=0,
        atol=tolerance,
    )


def test_decompose_truncates_to_the_best_approximation(backend: str) -> None:
    A = matrices.gaussian(30, 20)
    d = sk.decompose(A, 6)
    assert [x.shape for x in d] == [(30, 6), (6, 6), (6, 20)]
    error = np.linalg.norm(A - sk.recompose(*d))
    assert error == pytest.approx(np.linalg.norm(np.linalg.svd(A)[1][6:]))
    ragged = sk.decompose([A, A.T[:9]], 3)
    assert [x.Vh.shape for x in ragged] == [(3, 20), (3, 30)]
    assert all(isinstance(x, sk.Decomposed) for x in ragged)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("shape", [(8, 5, 3), (5, 8, 3), (6, 6, 6)], ids=str)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_recompose(diagonal: bool, shape: tuple[int, int, int], batch: tuple[int, ...]) -> None:
    parts = factors(*shape, batch, diagonal=diagonal)
    want = truth.recompose(*as_numpy(*parts))
    np.testing.assert_allclose(sk.recompose(*parts).numpy(), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sk.recompose(*as_numpy(*parts)), want, rtol=1e-12, atol=1e-12)
    assert sk.recompose([sk.Decomposed(*parts)])[0].equal(sk.recompose(*parts))
    for wrong in (parts[:2], parts[:1]):
        with pytest.raises(TypeError, match="expected U, Sigma and Vh, "):
            sk.recompose(*wrong)
    out = torch.empty(want.shape, dtype=torch.float64)
    assert sk.recompose(*parts, out=out) is out
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-12, atol=1e-12)
    target = np.full(want.shape, np.nan)
    assert sk.recompose(*as_numpy(*parts), out=target) is target
    np.testing.assert_allclose(target, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
# Few rows, many rows (the core is folded into U or Vh then), any leading dimensions.
@pytest.mark.parametrize("rows", [(), (1,), (3,), (40,), (2, 3), (4, 5, 6), (0,)], ids=str)
@pytest.mark.parametrize("shape", [(8, 5, 3), (5, 8, 3), (6, 6, 6)], ids=str)
def test_product(rows, shape, bias, diagonal) -> None:
    m, n, k = shape
    parts = factors(m, n, k, diagonal=diagonal)
    x = torch.randn(*rows, n, dtype=torch.float64)
    b = torch.randn(m, dtype=torch.float64) if bias else None
    want = as_numpy(x)[0] @ truth.recompose(*as_numpy(*parts)).T + (b.numpy() if bias else 0)
    got = sk.usv_matmul(x, *parts, b)
    assert got.shape == (*rows, m)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-12)
    assert sk.usv_matmul(x, sk.Decomposed(*parts), bias=b).equal(got)
    out = torch.empty(*rows, m, dtype=torch.float64)
    assert sk.usv_matmul(x, *parts, b, out=out) is out
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-11, atol=1e-12)
    in_numpy = sk.usv_matmul(*as_numpy(x, *parts), b.numpy() if bias else None)
    assert isinstance(in_numpy, np.ndarray)
    np.testing.assert_allclose(in_numpy, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("p", [2, 30])
@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
def test_batched_product(batch: tuple[int, ...], p: int, diagonal: bool) -> None:
    parts = factors(7, 9, 4, batch, diagonal=diagonal)
    x = torch.randn(*batch, p, 9, dtype=torch.float64)
    b = torch.randn(*batch, 7, dtype=torch.float64)
    want = truth.usv_matmul(*as_numpy(x, *parts, b))
    np.testing.assert_allclose(sk.usv_matmul(x, *parts, b).numpy(), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
@pytest.mark.parametrize("p", [3, 200])
def test_product_rounds_once(dtype: torch.dtype, p: int) -> None:
    """The error is that of rounding the result, not of rounding every intermediate one."""
    parts = factors(30, 40, 10, diagonal=False, dtype=dtype)
    x = torch.randn(p, 40).to(dtype)
    want = torch.from_numpy(truth.usv_matmul(*as_numpy(x, *parts)))
    got = sk.usv_matmul(x, *parts)
    assert got.dtype == dtype
    eps = torch.finfo(dtype).eps
    floor = 1e-4 if dtype in (torch.float16, torch.bfloat16) else 100 * eps
    error = (got.double() - want).abs()
    assert (error <= 0.51 * eps * want.abs() + floor * want.abs().max()).all()


MASKS = [mask for mask in itertools.product([False, True], repeat=4) if any(mask)]


@pytest.mark.parametrize("way", folding.WAYS)
@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_every_way_has_the_same_gradients(batch, diagonal, way) -> None:
    """What is needed of each, against autograd through a plain chain."""
    m, n, k, p = 7, 9, 4, 6
    U, Sigma, Vh = (t.requires_grad_() for t in factors(m, n, k, batch, diagonal=diagonal))
    x = torch.randn(*batch, p, n, dtype=torch.float64, requires_grad=True)
    g = torch.randn(*batch, p, m, dtype=torch.float64)
    core = torch.diag_embed(Sigma) if diagonal else Sigma
    given = (x, U, Sigma, Vh)
    want = torch.autograd.grad(x @ Vh.mT @ core.mT @ U.mT, given, g)
    with torch.no_grad():
        for needed in MASKS:
            found = gradients.by_way(way, g, *given, needed)
            for f, w, t, asked in zip(found, want, given, needed, strict=True):
                assert (f is not None) == asked
                if f is not None:
                    assert f.is_contiguous()
                    assert f.shape == t.shape
                    torch.testing.assert_close(f, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", folding.WAYS)
@pytest.mark.parametrize("sizes", [(50, 20, 30, 7), (9, 20, 30, 7), (50, 30, 20, 7)], ids=str)
def test_operations_are_counted_right(sizes, way) -> None:
    """The counts by which a way is chosen are those of the products that are done."""
    p, m, n, k = sizes
    given = [torch.randn(s) for s in ((p, m), (p, n), (m, k), (k, k), (k, n))]
    for needed in MASKS:
        with FlopCounterMode(display=False) as counter:
            gradients.by_way(way, *given, needed)
        counted = folding.backward_operations(way, p, m, n, k, needed)
        assert counter.get_total_flops() == 2 * k * counted


@pytest.mark.parametrize("sizes", [(50, 20, 30), (9, 20, 30), (50, 30, 20), (25, 30, 20)], ids=str)
def test_the_way_with_fewest_operations(sizes: tuple[int, int, int]) -> None:
    for core, needed in itertools.product((1, 7), MASKS):
        chosen = folding.backward_way(*sizes, core, needed)
        counts = {w: folding.backward_operations(w, *sizes, core, needed) for w in folding.WAYS}
        assert counts[chosen] == min(counts.values())


def test_the_whole_count_of_a_step() -> None:
    """2 p k (3 m + 4 n) operations and 8 of k^2 times the least of p, m and n."""
    for p, m, n, k in ((50, 20, 30, 7), (9, 20, 30, 7), (50, 30, 20, 7)):
        x, (U, Sigma, Vh) = torch.randn(p, n), factors(m, n, k, diagonal=False, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter:
            torch_backend.usv_matmul(x, U, Sigma, Vh, None)
            torch_backend.usv_backward(torch.randn(p, m), x, U, Sigma, Vh, [True] * 5)
        total = 2 * p * k * (3 * m + 4 * n) + 8 * k * k * min(p, m, n)
        assert counter.get_total_flops() == total


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("sizes", [(50, 20, 30, 7), (9, 20, 30, 7), (50, 30, 20, 7)], ids=str)
def test_products_of_onednn(sizes, diagonal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that processors without MKL's AVX-512 kernels use, at every size here."""
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(matmul, "LEAST", 0)
    p, m, n, k = sizes
    parts = factors(m, n, k, diagonal=diagonal, dtype=torch.float32)
    given = [t.requires_grad_() for t in (torch.randn(2, p, n), *parts, torch.randn(m))]
    wide = [t.detach().double().requires_grad_() for t in given]
    grad = torch.randn(2, p, m)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        y = sk.usv_matmul(*given)
        found = torch.autograd.grad(y, given, grad)
    assert any(e.key == "mkldnn::_linear_pointwise" for e in profiler.key_averages())
    exact = sk.usv_matmul(*wide)
    want = torch.autograd.grad(exact, wide, grad.double())
    for f, w in zip((y, *found), (exact, *want), strict=True):
        # float32 sums of 100 products at most: 3e-7 seen.
        assert (f - w).abs().max() <= 2e-6 * w.abs().max()


@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 4, 3)], ids=str)
@pytest.mark.parametrize("batch", [(), (2,), (2, 2)], ids=str)
def test_gradients_of_batches(batch, shape, diagonal) -> None:
    m, n, k = shape
    parts = [t.requires_grad_() for t in factors(m, n, k, batch, diagonal=diagonal)]
    assert torch.autograd.gradcheck(sk.recompose, parts)
    assert torch.autograd.gradgradcheck(sk.recompose, parts)
    for p in (3, 6):
        x = torch.randn(*batch, p, n, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(sk.usv_matmul, (x, *parts))
        assert torch.autograd.gradgradcheck(sk.usv_matmul, (x, *parts))


def test_recompose_is_never_cast() -> None:
    parts = factors(6, 5, 3, diagonal=False, dtype=torch.float32)
    want, out = sk.recompose(*parts), torch.empty(6, 5)
    with torch.autocast("cpu"):
        assert torch.equal(sk.recompose(*parts), want)
        assert torch.equal(sk.recompose(*parts, out=out), want)


def test_equals_linear(backend: str) -> None:
    layer = torch.nn.Linear(12, 7)
    d = sk.decompose(layer.weight.detach())
    x = torch.randn(5, 12)
    torch.testing.assert_close(sk.usv_matmul(x, *d, layer.bias).detach(), layer(x).detach())


def test_out_refuses_a_gradient() -> None:
    parts = factors(4, 5, 2, diagonal=True)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    out = torch.empty(3, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="out= is not differentiable"):
        sk.usv_matmul(x, *parts, out=out)
    with torch.no_grad():
        sk.usv_matmul(x, *parts, out=out)
    assert out.isfinite().all()


@given(m=st.integers(0, 300), n=st.integers(0, 300))
def test_break_even_rank(m: int, n: int) -> None:
    assert sk.break_even_rank(m, n) == truth.break_even_rank(m, n)


@given(m=st.integers(1, 10**40), n=st.integers(1, 10**40))
def test_break_even_rank_is_exact(m: int, n: int) -> None:
    k = sk.break_even_rank(m, n)
    assert k * k + (m + n) * k <= m * n < (k + 1) ** 2 + (m + n) * (k + 1)


def test_break_even_rank_by_hand() -> None:
    # 53^2 + 256 * 53 = 16,377 <= 16,384 and 54 is too many; 89^2 + 640 * 89 = 64,881 <= 65,536.
    assert sk.break_even_rank(128, 128) == 53
    assert sk.break_even_rank(512, 128) == sk.break_even_rank(128, 512) == 89
    assert sk.break_even_rank(1, 1) == sk.break_even_rank(0, 9) == 0
