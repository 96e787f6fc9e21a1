"""usv_matmul under torch.autocast: the dtypes that F.linear has there, float32 sums inside."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import spectral_kernels as sk

HALF = [torch.float16, torch.bfloat16]


def arguments(p: int = 6) -> list[torch.Tensor]:
    return [torch.randn(s, requires_grad=True) for s in ((p, 9), (7, 4), (4, 4), (4, 9), (7,))]


@pytest.mark.parametrize("x_dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_dtypes_are_those_of_linear(dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    x, *factors = arguments()
    weight = torch.randn(7, 9, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = sk.usv_matmul(x.to(x_dtype), *factors)
        want = functional.linear(x.to(x_dtype), weight, factors[-1])
    assert y.dtype == want.dtype == dtype
    y.sum().backward()
    assert {t.grad.dtype for t in (x, *factors)} == {torch.float32}


@pytest.mark.parametrize("p", [6, 40])
def test_values_are_those_of_cast_arguments(p: int) -> None:
    given = arguments(p)
    cast = [t.detach().bfloat16().requires_grad_() for t in given]
    # The gradient is taken inside too: nothing float32 between may become bfloat16 there.
    with torch.autocast("cpu"):
        y = sk.usv_matmul(*given)
        found = torch.autograd.grad((y * y).sum(), given)
    want = sk.usv_matmul(*cast)
    assert torch.equal(y, want)
    for f, w in zip(found, torch.autograd.grad((want * want).sum(), cast), strict=True):
        assert torch.equal(f, w.float())


def test_second_derivative_is_not_cast() -> None:
    given = [t.detach().double().requires_grad_() for t in arguments()]
    halves = [t.detach().float().requires_grad_() for t in given]

    def second(ts: list[torch.Tensor]) -> list[torch.Tensor]:
        y = torch.ops.spectral_kernels.usv_matmul(*ts)
        first = torch.autograd.grad((y * y).sum(), ts, create_graph=True)
        return list(torch.autograd.grad(sum((g * g).sum() for g in first), ts))

    want = second(given)
    y = torch.ops.spectral_kernels.usv_matmul(*halves)
    with torch.autocast("cpu"):
        first = torch.autograd.grad((y * y).sum(), halves, create_graph=True)
        assert {g.dtype for g in first} == {torch.float32}
    found = torch.autograd.grad(sum((g * g).sum() for g in first), halves)
    for f, w in zip(found, want, strict=True):
        # float32; bfloat16 anywhere would be 1e-3 off.
        assert (f - w).abs().max() <= 1e-5 * w.abs().max()


def test_float64_stays_as_torch_has_it() -> None:
    wide = [t.double() for t in arguments()]
    with torch.autocast("cpu"):
        assert sk.usv_matmul(*wide).dtype == torch.float64
        with pytest.raises(ValueError, match=r"x torch\.float64, U torch\.float32"):
            sk.usv_matmul(wide[0], *arguments()[1:])
        with torch.autocast("cpu", enabled=False), pytest.raises(ValueError, match="dtypes differ"):
            sk.usv_matmul(arguments()[0].bfloat16(), *arguments()[1:])


def test_out_is_never_cast() -> None:
    given = [t.detach() for t in arguments()]
    want = sk.usv_matmul(*given)
    out = torch.empty(6, 7)
    with torch.autocast("cpu"):
        sk.usv_matmul(*given, out=out)
        with pytest.raises(ValueError, match="dtypes differ"):
            sk.usv_matmul(given[0].bfloat16(), *given[1:], out=out.bfloat16())
    assert torch.equal(out, want)


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
def test_compiled(inside: bool) -> None:
    given = arguments()

    def product() -> torch.Tensor:
        if inside:
            with torch.autocast("cpu"):
                return sk.usv_matmul(*given)
        return sk.usv_matmul(*given)

    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", enabled=not inside):
        y, want = compiled(), product()
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, want)
    pairs = (torch.autograd.grad(t.sum(), given) for t in (y, want))
    for f, w in zip(*pairs, strict=True):
        assert torch.equal(f, w)


def test_opcheck_inside() -> None:
    with torch.autocast("cpu"):
        torch.library.opcheck(torch.ops.spectral_kernels.usv_matmul.default, tuple(arguments()))
