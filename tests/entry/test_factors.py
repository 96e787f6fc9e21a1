"""Spectra of U Sigma Vh from its factors: cores, their bounds, and what takes a Decomposed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import spectral_kernels as sk
from spectral_kernels.entry.results import Decomposed
from tests.support import matrices
from tests.support.factored_matrices import (
    BAD,
    EPS64,
    SHAPES,
    gaussian,
    reference_values,
    trained,
    whole,
)


def test_lift_under_autocast() -> None:
    x = trained(30, 20, 6)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sk.svd(x)
        tracker = sk.SpectrumTracker(reuse_buffers=True)
        for _ in range(2):
            tracked = tracker.update(x)
    for a, b in zip(sk.svd(x), inside, strict=True):
        assert a.equal(b)
    U, S, Vh = (part.double() for part in tracked)
    torch.testing.assert_close((U * S) @ Vh, whole(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (70, 40, 33), (130, 65, 20)], ids=str)
@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
def test_svd_and_svdvals(shape, dtype, backend) -> None:
    m, n, k = shape
    x = gaussian(m, n, k, (2,), dtype)
    want = reference_values(x)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    atol = max(8 * eps, 60 * EPS64) * want.max()
    r = min(shape)
    S = sk.svdvals(x)
    assert S.shape == (2, r)
    np.testing.assert_allclose(S, want[..., :r], rtol=0, atol=atol)
    found = sk.svd(x)
    assert [tuple(part.shape) for part in found] == [(2, m, r), (2, r), (2, r, n)]
    # LAPACK's float32 values with vectors, which plain torch returns, err by 9 eps here.
    np.testing.assert_allclose(found.S, want[..., :r], rtol=0, atol=2 * atol)
    U, S, Vh = (part.double() for part in found)
    torch.testing.assert_close((U * S.unsqueeze(-2)) @ Vh, whole(x), rtol=0, atol=20 * atol)
    for Q in (U, Vh.mT):
        assert (Q.mT @ Q - torch.eye(r)).abs().max() <= 40 * eps
    assert (U.gather(-2, U.abs().argmax(dim=-2, keepdim=True)) > 0).all()
    assert found.U.mT.is_contiguous()


@pytest.mark.parametrize("name", BAD)
def test_values_in_bad_cases(name: str, every_isa: str) -> None:
    """Errors are within 8 eps sigma_1 of the type, whatever the factors are: see the contract.

    Where a product cancels, its own rounding in float64 is larger than eps sigma_1 of float64.
    """
    x = BAD[name]
    want = reference_values(x)
    got = sk.svdvals(x).double().numpy()
    eps = torch.finfo(x.U.dtype).eps
    assert np.abs(got - want).max() <= 8 * eps * want.max() + 2.0**-149 * (
        x.U.dtype != torch.float64
    )


def test_kinds_of_arrays_and_lists() -> None:
    x, y = gaussian(9, 7, 4), gaussian(5, 8, 3)
    diagonal = x.Sigma.diagonal()
    numpy = Decomposed(*(part.numpy() for part in y))
    A = torch.randn(6, 5)
    values = sk.svdvals([x, A, numpy])
    assert [type(S) for S in values] == [torch.Tensor, torch.Tensor, np.ndarray]
    assert [len(S) for S in values] == [4, 5, 3]
    torch.testing.assert_close(values[1], sk.svdvals(A))
    np.testing.assert_array_equal(values[2], sk.svdvals(numpy))
    found = sk.svd((numpy, A))
    assert isinstance(found, list)
    assert isinstance(found[0].U, np.ndarray)
    assert found[0].Vh.shape == (3, 8)
    both = sk.svdvals([Decomposed(x.U, diagonal, x.Vh), y])
    assert both[0].equal(sk.svdvals(Decomposed(x.U, torch.diag(diagonal), x.Vh)))
    assert both[1].equal(sk.svdvals(y))
    assert sk.svd([]) == []


def test_never_forms_the_matrix() -> None:
    """20,000 x 20,000 in float64 would be 3.2 GB; the largest tensor here is 20,000 x 6."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return result

    x = Decomposed(*(part.requires_grad_() for part in gaussian(20_000, 20_000, 6)))
    with Watch():
        sk.svdvals(x).sum().backward()
        sk.stable_rank(x).backward()
        with torch.no_grad():
            sk.svd(x)
            sk.SpectrumTracker().update(x)
    assert 0 < largest <= 6 * 20_000


@pytest.mark.parametrize("shape", [(20, 12, 5), (12, 20, 12), (4, 20, 7), (9, 9, 9)], ids=str)
def test_ranks_and_norms(shape, backend) -> None:
    """Those of the matrix, whose other singular values are zero."""
    m, n, k = shape
    x = gaussian(m, n, k, dtype=torch.float64)
    A, r = whole(x), min(shape)
    for got, want in (
        (sk.effective_rank(x), sk.effective_rank(A)),
        (sk.effective_rank(x, normalized=True), sk.effective_rank(A, normalized=True)),
        (sk.effective_rank(x, form="exponential"), sk.effective_rank(A, form="exponential")),
        (sk.stable_rank(x), sk.stable_rank(A)),
        (sk.stable_rank(x, normalized=True), sk.stable_rank(A, normalized=True)),
        (sk.numerical_rank(x), torch.tensor(float(r), dtype=torch.float64)),
    ):
        torch.testing.assert_close(got, want)
    mixed = sk.spectral_summary([A, x])
    for name in sk.SpectralSummary._fields[1:]:
        if name != "numerical_rank":
            torch.testing.assert_close(getattr(mixed[1], name), getattr(mixed[0], name))
    assert mixed[1].singular_values.shape == (r,)


def test_numerical_rank_is_of_the_whole_shape() -> None:
    """A value of 100 eps counts in a matrix of side 50 and not in one of side 200."""
    for side, rank in ((50, 2.0), (200, 1.0)):
        U = torch.from_numpy(matrices.orthonormal(side, 2))
        Sigma = torch.diag(torch.tensor([1.0, 100 * EPS64], dtype=torch.float64))
        x = Decomposed(U, Sigma, U.mT)
        assert sk.numerical_rank(x) == rank
        assert sk.spectral_summary(x).numerical_rank == rank
        grown = Decomposed(*(part.clone().requires_grad_() for part in x))
        assert sk.numerical_rank(grown) == rank


@pytest.mark.parametrize("shape", [(7, 6, 3), (6, 7, 6), (3, 7, 5), (5, 5, 5)], ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("function", ["svdvals", "effective_rank", "stable_rank", "summary"])
def test_gradients(function: str, shape, batch) -> None:
    m, n, k = shape
    x = [part.requires_grad_() for part in gaussian(m, n, k, batch, torch.float64)]
    functions = {
        "svdvals": lambda *f: sk.svdvals(Decomposed(*f)),
        "effective_rank": lambda *f: sk.effective_rank(Decomposed(*f)),
        "stable_rank": lambda *f: sk.stable_rank(Decomposed(*f)),
        "summary": lambda *f: sk.spectral_summary(Decomposed(*f)).nuclear_norm,
    }
    assert torch.autograd.gradcheck(functions[function], x)


def test_gradients_of_a_diagonal_core_and_of_float32() -> None:
    U, Sigma, Vh = (part.requires_grad_() for part in gaussian(7, 6, 3, dtype=torch.float64))
    diagonal = Sigma.detach().diagonal().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *f: sk.svdvals(Decomposed(*f)), (U, diagonal, Vh))
    single = [part.detach().float().requires_grad_() for part in (U, Sigma, Vh)]
    sk.svdvals(Decomposed(*single)).square().sum().backward()
    # The gradient of ||A||_F^2 is 2 A.
    A = U @ Sigma @ Vh
    for part, want in zip(
        single, (2 * A @ (Sigma @ Vh).mT, 2 * U.mT @ A @ Vh.mT, 2 * (U @ Sigma).mT @ A), strict=True
    ):
        assert part.grad is not None
        assert part.grad.dtype == torch.float32
        torch.testing.assert_close(part.grad.double(), want.detach(), rtol=1e-4, atol=1e-4)


def test_gradient_of_repeated_values_is_finite() -> None:
    Q = torch.from_numpy(matrices.orthonormal(8, 3))
    x = Decomposed(*(y.clone().requires_grad_() for y in (Q, torch.eye(3).double(), Q.mT)))
    sk.effective_rank(x).backward()
    sk.svdvals(x).sum().backward()
    assert all(part.grad.isfinite().all() for part in x)


def test_svd_is_declared_non_differentiable() -> None:
    x = Decomposed(*(part.requires_grad_() for part in gaussian(7, 6, 3)))
    with pytest.raises(RuntimeError, match="non-differentiable"):
        sk.svd(x).U.sum().backward()


def test_errors() -> None:
    x, y = gaussian(9, 7, 4), gaussian(9, 7, 3)
    with pytest.raises(ValueError, match=r"shapes do not chain of A: U is \(9, 4\)"):
        sk.svdvals(Decomposed(x.U, y.Sigma, x.Vh))
    with pytest.raises(ValueError, match=r"shapes do not chain of A\[1\]"):
        sk.stable_rank([x, Decomposed(x.U, y.Sigma, x.Vh)])
    with pytest.raises(ValueError, match=r"shapes do not chain: U is"):
        sk.recompose(Decomposed(x.U, y.Sigma, x.Vh))
    with pytest.raises(TypeError, match=r"Sigma of A has dtype int64"):
        sk.svd(Decomposed(x.U, x.Sigma.long(), x.Vh))
    with pytest.raises(ValueError, match="different kinds"):
        sk.svdvals(Decomposed(x.U, x.Sigma.numpy(), x.Vh))
    x.Vh[0, 0] = math.nan
    assert sk.svdvals(x).isnan().all()
    with pytest.raises(ValueError, match=r"Vh of A holds NaN or Inf"):
        sk.svdvals(x, check_finite=True)
    with pytest.raises(ValueError, match=r"Sigma of A\[0\] holds NaN"):
        sk.svd([Decomposed(y.U, y.Sigma.diagonal() * math.nan, y.Vh)], check_finite=True)
