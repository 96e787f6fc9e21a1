"""usv_matmul and its gradient where grids, tiles, chunks and parts end, in every order of programs.

Bounds are those of one rounding to the dtype, and a floor for sums of float32. Largest seen above
one rounding, of the largest entry: float32 2.8e-7, float16 7e-8, bfloat16, where float32 numbers go
as two of 8 bits each, 2.2e-6. (The interpreter multiplies float32 as such, not as TF32.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

import spectral_kernels as sk
from spectral_kernels.factored import (
    tiling,
    triton_backend,
    triton_backward_kernels,
    triton_kernels,
    triton_reduce_kernels,
)
from spectral_kernels.runtime import dispatch
from tests.support import bfloat16
from tests.support.interleaved import Interleaved

FLOOR = {torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-5}
# Tiles as small as products can be, so that small inputs have many of each.
BLOCKS = ("BLOCK_P", "BLOCK_F", "BLOCK_S", "BLOCK_R", "BLOCK_C")
SMALL = {"SPLITS": 2, "CHUNK": 32} | dict.fromkeys(BLOCKS, 16)


@pytest.fixture(autouse=True)
def right_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    bfloat16.use(monkeypatch)


def arguments(p, m, n, k, *, batch=(), dense=True, bias=True, dtype=torch.float32):
    """Return x, U, Sigma, Vh and bias or None, leaves of a graph."""
    core = (*batch, k, k) if dense else (*batch, k)
    shapes = [(*batch, p, n), (*batch, m, k), core, (*batch, k, n)] + [(*batch, m)] * bias
    made = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return made if bias else [*made, None]


def wide(given: list[Any]) -> list[Any]:
    return [None if t is None else t.detach().double().requires_grad_() for t in given]


def check(found: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.shape == want.shape
    once = 0.501 * torch.finfo(dtype).eps * want.abs()
    error = (found.double() - want).abs()
    assert (error <= once + FLOOR[dtype] * want.abs().max()).all(), (error - once).max()


def check_all(given: list[Any], grad: torch.Tensor | None = None) -> None:
    """Compare the product and every gradient with float64."""
    dtype = given[0].dtype
    exact = wide(given)
    y, want = sk.usv_matmul(*given), sk.usv_matmul(*exact)
    check(y.detach(), want.detach(), dtype)
    grad = torch.randn(y.shape).to(dtype) if grad is None else grad
    y.backward(grad)
    want.backward(grad.double())
    for t, e in zip(given, exact, strict=True):
        if t is not None:
            check(t.grad, e.grad, dtype)


def test_the_kernels_run() -> None:
    assert dispatch.backend("factored", "cpu") is triton_backend


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        ((1, 1, 1, 1), ()),
        ((3, 5, 130, 1), ()),
        ((70, 41, 37, 9), ()),
        ((65, 129, 66, 16), ()),
        ((17, 20, 90, 17), (2,)),
        ((40, 33, 20, 5), (2, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_odd_sizes(sizes, batch, dense, dtype) -> None:
    check_all(arguments(*sizes, batch=batch, dense=dense, bias=dense, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize(("p", "splits"), [(1, 1), (31, 4), (32, 2), (33, 1), (70, 2)])
def test_chunks_and_parts(p: int, splits: int, dtype: torch.dtype) -> None:
    """A number of rows on both sides of a chunk's end; parts of columns, some of them empty."""
    given = arguments(p, 20, 38, 17, dtype=dtype)
    with tiling.overriding("backward", SMALL | {"SPLITS": splits, "BLOCK_K": 32}):
        check_all(given)


def framed(t: torch.Tensor) -> torch.Tensor:
    """Return a leaf equal to t, with NaN on all sides of its last two dimensions."""
    margins = [1 if i >= t.dim() - 2 else 0 for i in range(t.dim())]
    around = torch.full([s + 2 * a for s, a in zip(t.shape, margins, strict=True)], torch.nan)
    inner = around.to(t.dtype)[tuple(slice(a, -a or None) for a in margins)]
    return inner.copy_(t.detach()).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_nothing_beyond_the_edges_is_read(dense: bool, dtype: torch.dtype) -> None:
    given = arguments(33, 21, 37, 9, batch=(2,), dense=dense, dtype=dtype)
    check_all([framed(t) for t in given], framed(torch.randn(2, 33, 21).to(dtype)).detach())
    # A diagonal core and a bias of one product are contiguous within their frames.
    single = arguments(33, 21, 37, 9, dense=False, dtype=dtype)
    check_all([framed(t) for t in single], framed(torch.randn(33, 21).to(dtype)).detach())


@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("batch", [(), (2, 2)], ids=str)
def test_split_products(batch, dense, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plan takes torch's products of bfloat16, with all parts and with some frozen."""
    monkeypatch.setattr(triton_kernels, "usv_forward", None)
    monkeypatch.setattr(triton_backward_kernels, "usv_backward", None)
    with tiling.overriding("forward", None), tiling.overriding("backward", None):
        sizes = {"batch": batch, "dense": dense, "dtype": torch.bfloat16}
        check_all(arguments(70, 41, 37, 9, bias=dense, **sizes))
        for frozen in range(4):
            given = arguments(6, 4, 5, 3, **sizes)
            given[frozen].requires_grad_(False)
            exact = wide(given)
            sk.usv_matmul(*given).sum().backward()
            sk.usv_matmul(*exact).sum().backward()
            assert given[frozen].grad is None
            for i in {0, 1, 2, 3, 4} - {frozen}:
                check(given[i].grad, exact[i].grad, torch.bfloat16)
        infinite = given[0].detach().clone()
        infinite[..., 0, 0] = float("inf")
        assert (
            sk.usv_matmul(infinite, *(t.detach().abs() for t in given[1:]))[..., 0, :].isinf().all()
        )


def test_any_strides() -> None:
    """Columns in memory order, rows with gaps, a gradient that is one number everywhere."""
    x, U, Sigma, *_ = arguments(18, 11, 23, 6)
    given = [
        x.detach().mT.contiguous().mT.requires_grad_(),
        U.detach().mT.contiguous().mT.requires_grad_(),
        Sigma.detach().mT.requires_grad_(),
        torch.randn(12, 46)[::2, ::2].requires_grad_(),
        torch.randn(22)[::2].requires_grad_(),
    ]
    check_all(given, torch.ones(()).expand(18, 11))
    three = torch.randn(4, 5, 23).transpose(0, 1).requires_grad_()
    check_all([three, *(t.detach().requires_grad_() for t in given[1:])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_out(dtype: torch.dtype) -> None:
    given = [t.detach() for t in arguments(18, 11, 23, 6, dtype=dtype)]
    want = sk.usv_matmul(*[t.double() for t in given])
    for out in (torch.empty(18, 11, dtype=dtype), torch.empty(11, 36, dtype=dtype)[:, ::2].mT):
        assert sk.usv_matmul(*given, out=out) is out
        check(out, want, dtype)


def test_hidden_numbers_beyond_float16_and_infinite_ones() -> None:
    """The k numbers between stay float32; infinity stays infinity where float32 is split."""
    x, U = torch.full((2, 32), 240.0).half(), torch.full((3, 1), 2.0**-9).half()
    y = sk.usv_matmul(x, U, torch.ones(1).half(), torch.full((1, 32), 100.0).half())
    assert (y == 240 * 100 * 32 / 2**9).all()
    x = torch.ones(2, 5).bfloat16()
    x[1, 2] = float("inf")
    y = sk.usv_matmul(
        x, *(t.bfloat16() for t in (torch.ones(3, 1), torch.ones(1), torch.ones(1, 5)))
    )
    assert (y[0] == 5).all()
    assert (y[1] == float("inf")).all()


def test_nan_stays_in_its_row() -> None:
    given = [t.detach() for t in arguments(20, 11, 23, 6)]
    given[0][7, 3] = float("nan")
    bad = sk.usv_matmul(*given).isnan()
    assert bad[7].all()
    assert bad.sum() == 11


def test_nothing_to_multiply() -> None:
    for sizes in ((0, 4, 5, 2), (3, 0, 5, 2), (3, 4, 0, 2), (3, 4, 5, 0)):
        given = arguments(*sizes)
        y = sk.usv_matmul(*given)
        assert y.shape == (sizes[0], sizes[1])
        y.sum().backward()
        assert all(t.grad.shape == t.shape and t.grad.isfinite().all() for t in given)


def test_second_derivative() -> None:
    given = arguments(6, 4, 5, 3)
    exact = wide(given)
    found, want = (
        torch.autograd.grad(
            sum(
                (g * g).sum()
                for g in torch.autograd.grad((sk.usv_matmul(*ts) ** 2).sum(), ts, create_graph=True)
            ),
            ts,
        )
        for ts in (given, exact)
    )
    for f, w in zip(found, want, strict=True):
        assert (f.double() - w).abs().max() <= 1e-5 * w.abs().max()


def test_frozen_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's products make what is asked for; the kernel would make everything."""
    monkeypatch.setattr(triton_backward_kernels, "usv_backward", None)
    for i in range(4):
        given = arguments(6, 4, 5, 3)
        given[i].requires_grad_(False)
        exact = wide(given)
        sk.usv_matmul(*given).sum().backward()
        sk.usv_matmul(*exact).sum().backward()
        assert given[i].grad is None
        for j in {0, 1, 2, 3, 4} - {i}:
            check(given[j].grad, exact[j].grad, torch.float32)


def gradients(given: list[Any], grad: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(sk.usv_matmul(*given), given, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_programs_in_any_order(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the same gradients, however the programs of the launch take turns."""
    given = arguments(70, 20, 40, 5, batch=(2,), dtype=dtype)
    grad = torch.randn(2, 70, 20).to(dtype)
    kernel = triton_backward_kernels.usv_backward
    with tiling.overriding("backward", SMALL | {"BLOCK_K": 16}):
        want = gradients(given, grad)
        for seed in range(3):
            interleaved = Interleaved(kernel, seed)
            monkeypatch.setattr(triton_backward_kernels, "usv_backward", interleaved)
            for f, w in zip(gradients(given, grad), want, strict=True):
                assert torch.equal(f, w)
            assert interleaved.launches == 1


@triton.jit
def _no_wait(counter_ptr, count):
    tl.debug_barrier()


def test_a_missing_wait_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    given, grad = arguments(70, 20, 40, 5), torch.randn(70, 20)
    with tiling.overriding("backward", SMALL | {"BLOCK_K": 16}):
        want = gradients(given, grad)
        monkeypatch.setattr(triton_reduce_kernels, "wait", _no_wait)
        # In the interpreter's own order nobody has to wait.
        assert all(map(torch.equal, gradients(given, grad), want))
        interleaved = Interleaved(triton_backward_kernels.usv_backward, 0)
        monkeypatch.setattr(triton_backward_kernels, "usv_backward", interleaved)
        assert not all(map(torch.equal, gradients(given, grad), want))
