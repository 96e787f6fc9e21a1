"""The gradients that the contract names, and clear errors for the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.svd import truth
from tests.support import matrices

SHAPES = [(6, 4), (4, 6), (5, 5), (2, 7, 3)]


def simple(*shape: int) -> torch.Tensor:
    """Return matrices whose singular values are apart, so that gradients exist."""
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "function",
    [
        sk.svdvals,
        lambda A: sk.spectral_summary(A).nuclear_norm,
        lambda A: sk.spectral_summary(A).spectral_norm,
        lambda A: sk.spectral_summary(A).frobenius_norm,
        sk.stable_rank,
        lambda A: sk.stable_rank(A, normalized=True),
        sk.effective_rank,
        lambda A: sk.effective_rank(A, normalized=True),
        lambda A: sk.effective_rank(A, form="exponential"),
        lambda A: torch.stack(sk.spectral_summary(A)[1:]),
        lambda A: sk.svdvals([A, A.mT * 2])[1],
        lambda A: sum(sk.effective_rank([A, A @ A.mT])),
    ],
    ids=[
        *("svdvals", "nuclear", "spectral", "frobenius", "stable", "stable normalized"),
        *("effective", "effective normalized", "exponential", "summary", "list", "two of a list"),
    ],
)
def test_gradcheck(function, shape: tuple[int, ...], backend: str) -> None:
    # Determinism included: two backward passes must agree bit by bit.
    assert torch.autograd.gradcheck(function, (simple(*shape),), nondet_tol=0.0)


@pytest.mark.parametrize("shape", [(9, 5), (60, 50)], ids=str)
def test_values_only_gradient(shape: tuple[int, int], backend: str) -> None:
    A = matrices.gaussian(*shape)
    weights = np.linspace(1, 2, min(shape))
    for dtype, tolerance in ((torch.float32, 3e-5), (torch.float64, 1e-12)):
        leaf = torch.from_numpy(A).to(dtype).requires_grad_()
        (sk.svdvals(leaf) * torch.from_numpy(weights).to(dtype)).sum().backward()
        want = truth.svdvals_gradient(A, weights)
        assert leaf.grad.dtype == dtype
        np.testing.assert_allclose(leaf.grad.numpy(), want, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradient_has_the_dtype_of_the_weight(dtype: torch.dtype, backend: str) -> None:
    leaf = torch.randn(6, 4).to(dtype).requires_grad_()
    sk.spectral_summary(leaf).nuclear_norm.backward()
    assert leaf.grad.dtype == dtype
    U, _, Vh = torch.linalg.svd(leaf.detach().float(), full_matrices=False)
    torch.testing.assert_close(leaf.grad.float(), U @ Vh, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", ["identity 7", "repeated 40x50", "rank 5 of 128x64", "zero 6x4"])
def test_gradients_stay_finite(name: str, backend: str) -> None:
    """Repeated and zero values: torch.linalg.svd has infinities there."""
    A = torch.from_numpy(matrices.ZOO[name]()).float().requires_grad_()
    summary = sk.spectral_summary(A)
    for x in summary:
        (gradient,) = torch.autograd.grad(x.sum(), A, retain_graph=True)
        assert gradient.isfinite().all()


def test_gradient_at_scales(backend: str) -> None:
    base = torch.randn(6, 5, dtype=torch.float64)
    for scale in (1e30, 1e-30):
        A = (base * scale).float().requires_grad_()
        unit = base.float().requires_grad_()
        for function in (sk.effective_rank, sk.stable_rank):
            (got,) = torch.autograd.grad(function(A), A)
            (want,) = torch.autograd.grad(function(unit), unit)
            torch.testing.assert_close(got.double() * scale, want.double(), rtol=1e-4, atol=1e-5)


def test_one_nan_matrix_spoils_its_own_gradient_alone(backend: str) -> None:
    A = torch.randn(3, 5, 4)
    A[1, 0, 0] = float("nan")
    A.requires_grad_()
    sk.effective_rank(A).sum().backward()
    assert A.grad[1].isnan().all()
    assert A.grad[[0, 2]].isfinite().all()


def test_unused_and_frozen_matrices_of_a_list(backend: str) -> None:
    A = [simple(4, 3), simple(5, 5), torch.randn(3, 3, dtype=torch.float64)]
    values = sk.svdvals(A)
    values[0].sum().backward()
    assert A[0].grad is not None
    assert A[1].grad is None or not A[1].grad.any()
    assert A[2].grad is None


def test_empty_matrices(backend: str) -> None:
    A = torch.empty(0, 3, requires_grad=True)
    (sk.svdvals(A).sum() + sk.effective_rank(A)).backward()
    assert A.grad.shape == (0, 3)


def test_no_graph_without_need() -> None:
    A = torch.randn(4, 4, requires_grad=True)
    with torch.no_grad():
        assert not sk.svdvals(A).requires_grad
        assert not sk.svd(A).U.requires_grad
    assert not sk.svdvals(A.detach()).requires_grad


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("svd", lambda A: sk.svd(A).S),
        ("svd", lambda A: sk.decompose(A).Sigma),
        ("rsvd", lambda A: sk.rsvd(A, 2).S),
        ("alignment_diagonals", lambda A: sk.alignment_diagonal(A, A.mT)),
        (
            "alignment_diagonals",
            lambda A: sk.singular_vector_agreement(*[sk.SVD(A[:4], A, A[:4])] * 2),
        ),
        ("svd", lambda A: torch.autograd.grad(sk.svdvals(A).sum(), A, create_graph=True)[0]),
    ],
    ids=["svd", "decompose", "rsvd", "alignment", "agreement", "second derivative"],
)
def test_the_rest_says_that_it_has_no_gradient(name: str, function) -> None:
    A = torch.randn(5, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=f"{name} is declared non-differentiable"):
        function(A).sum().backward()


def test_bounds_are_detached() -> None:
    A = torch.randn(5, 4, requires_grad=True)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    assert not sk.bounds_from_residuals(A, U, S, Vh).requires_grad
    assert not any(x.requires_grad for x in sk.bounds_from_leading_values(S, 9.0, 4))


@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    ("x_shape", "batch"),
    [
        ((5,), ()),
        ((3, 5), ()),
        ((2, 3, 5), ()),
        ((20, 5), ()),
        ((2, 3, 5), (2,)),
        ((2, 9, 5), (2,)),
    ],
    ids=str,
)
def test_usv_matmul(x_shape, batch, bias, diagonal) -> None:
    m, n, k = 4, 5, 3
    shapes = [x_shape, (*batch, m, k), (*batch, k) if diagonal else (*batch, k, k), (*batch, k, n)]
    if bias:
        shapes.append((*batch, m))
    arguments = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(sk.usv_matmul, arguments)
    assert torch.autograd.gradgradcheck(sk.usv_matmul, arguments)


def test_usv_matmul_with_frozen_factors() -> None:
    x, U, Sigma, Vh = (
        torch.randn(s, dtype=torch.float64) for s in ((6, 5), (4, 3), (3, 3), (3, 5))
    )
    for i in range(4):
        arguments = [x, U, Sigma, Vh]
        arguments[i] = arguments[i].clone().requires_grad_()
        assert torch.autograd.gradcheck(sk.usv_matmul, arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_usv_matmul_gradients_in_half_precision(dtype: torch.dtype) -> None:
    shapes = [(7, 5), (4, 3), (3, 3), (3, 5), (4,)]
    half = [torch.randn(s).to(dtype).requires_grad_() for s in shapes]
    wide = [x.detach().double().requires_grad_() for x in half]
    sk.usv_matmul(*half).sum().backward()
    sk.usv_matmul(*wide).sum().backward()
    for x, y in zip(half, wide, strict=True):
        assert x.grad.dtype == dtype
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=torch.finfo(dtype).eps, atol=1e-2)


def test_training_with_a_rank_penalty_lowers_the_rank(backend: str) -> None:
    weight = torch.randn(12, 10).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.3)
    before = sk.effective_rank(weight).item()
    for _ in range(60):
        optimizer.zero_grad()
        sk.effective_rank(weight).backward()
        optimizer.step()
    assert weight.isfinite().all()
    assert sk.effective_rank(weight).item() < before - 0.1
