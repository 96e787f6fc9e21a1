"""usv_matmul and decomposed layers in forward mode, under torch.func, with batched gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import spectral_kernels as sk
from tests.support.tolerances import REORDERED

# Products of a few float64 numbers of order 1.


def layer(rank: int | None = None) -> sk.DecomposedLinear:
    torch.manual_seed(0)
    return sk.DecomposedLinear(5, 6, rank=rank, dtype=torch.float64)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_tangents_of_forward_mode_are_not_lost(frozen: bool) -> None:
    decomposed = layer(3).requires_grad_(not frozen)
    x, v = numbers(4, 5), numbers(4, 5) + 1
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(decomposed(forward_ad.make_dual(x, v))).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, v @ decomposed.weight.mT, **REORDERED)


@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobian_is_the_weight(jacobian: object) -> None:
    decomposed = layer(3)
    assert callable(jacobian)
    torch.testing.assert_close(jacobian(decomposed)(numbers(5)), decomposed.weight, **REORDERED)


def test_gradients_by_func_and_for_each_sample() -> None:
    decomposed = layer(3)
    parameters = {name: p.detach() for name, p in decomposed.named_parameters()}
    x = numbers(7, 5)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(decomposed, parameters, (x,))
        return y.square().sum()

    decomposed(x).square().sum().backward()
    whole = torch.func.grad(loss)(parameters, x)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, parameter in decomposed.named_parameters():
        torch.testing.assert_close(whole[name], parameter.grad, **REORDERED)
        torch.testing.assert_close(each[name].sum(0), parameter.grad, **REORDERED)


def test_hessian_by_func_is_that_of_autograd() -> None:
    decomposed = layer(3)

    def loss(x: Tensor) -> Tensor:
        y: Tensor = decomposed(x)
        return (y**3).sum()

    x = numbers(5)
    expected = torch.autograd.functional.hessian(loss, x)
    torch.testing.assert_close(torch.func.hessian(loss)(x), expected, **REORDERED)


def test_many_gradients_in_one_call() -> None:
    decomposed = layer(3)
    x = numbers(4, 5).requires_grad_()
    seeds = numbers(3, 4, 6)
    (found,) = torch.autograd.grad(decomposed(x), x, seeds, is_grads_batched=True)
    torch.testing.assert_close(found, seeds @ decomposed.weight, **REORDERED)


@pytest.mark.parametrize("rows", [2, 9])
def test_forward_mode_of_every_argument(rows: int) -> None:
    U, Sigma, Vh, bias = numbers(6, 3), numbers(3, 3), numbers(3, 5), numbers(6)
    arguments = (numbers(rows, 5), U, Sigma, Vh, bias)
    assert torch.autograd.gradcheck(
        sk.usv_matmul,
        tuple(a.requires_grad_() for a in arguments),
        check_forward_ad=True,
        check_batched_grad=True,
    )


def test_many_biases_of_a_batch() -> None:
    x, U, Sigma, Vh = numbers(2, 4, 5), numbers(2, 6, 3), numbers(2, 3, 3), numbers(2, 3, 5)

    def loss(bias: Tensor) -> Tensor:
        return sk.usv_matmul(x, U, Sigma, Vh, bias).square().sum()

    biases = numbers(3, 2, 6)
    found = torch.func.vmap(torch.func.grad(loss))(biases)
    y = (x @ (U @ Sigma @ Vh).mT).unsqueeze(0) + biases.unsqueeze(-2)
    torch.testing.assert_close(found, 2 * y.sum(dim=-2), **REORDERED)


@pytest.mark.parametrize("function", [sk.svdvals, sk.stable_rank])
def test_spectra_refuse_tangents_rather_than_lose_them(function: Callable[..., Tensor]) -> None:
    U, Sigma, Vh = numbers(6, 3), numbers(3, 3), numbers(3, 5)

    def of_factors(U: Tensor) -> Tensor:
        return function(sk.Decomposed(U, Sigma, Vh))

    for differentiated in (function, of_factors):
        with pytest.raises(RuntimeError, match="no derivative in forward mode"):
            torch.func.jvp(differentiated, (U,), (U,))
    # What has no tangent may be looked at on the way.
    value, _ = torch.func.jvp(lambda x: x.sum() * function(U).sum(), (Vh,), (Vh,))
    torch.testing.assert_close(value, Vh.sum() * function(U).sum(), **REORDERED)
