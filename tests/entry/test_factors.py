"""Spectra of U Sigma Vh from its factors: cores, their bounds, and what takes a Decomposed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spectral_kernels as sk
from spectral_kernels.entry.core import Core, cores, lift
from spectral_kernels.entry.results import SVD, Decomposed
from tests.support import matrices

EPS32, EPS64 = 2.0**-23, 2.0**-52


def gaussian(m: int, n: int, k: int, batch=(), dtype=torch.float32, seed: int = 0) -> Decomposed:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*batch, m, k), (*batch, k, k), (*batch, k, n))
    return Decomposed(
        *(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    )


def trained(m: int, n: int, k: int, dtype=torch.float32, drift: float = 0.1) -> Decomposed:
    """Factors as training leaves them: not far from orthonormal, and a core that is dense."""
    r = matrices.rng(3)
    U = matrices.orthonormal(m, k) + drift * r.standard_normal((m, k)) / math.sqrt(m)
    V = matrices.orthonormal(n, k, 1) + drift * r.standard_normal((n, k)) / math.sqrt(n)
    Sigma = np.diag(np.linspace(2.0, 0.1, k)) + drift * r.standard_normal((k, k)) / k
    return Decomposed(*(torch.from_numpy(x).to(dtype) for x in (U, Sigma, V.T.copy())))


def exact(x: Decomposed) -> np.ndarray:
    """Return U Sigma Vh in extended precision, of which float64 is the rounding."""
    U, Sigma, Vh = (part.double().numpy().astype(np.longdouble) for part in x)
    return U @ Sigma @ Vh


def reference_values(x: Decomposed) -> np.ndarray:
    """Singular values to about 1e-15 sigma_1: of the product in extended precision, rounded."""
    product = exact(x)
    scale = np.abs(product).max(axis=(-2, -1), keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    values = np.linalg.svd((product / scale).astype(np.float64), compute_uv=False)
    k = x.Sigma.shape[-1]
    return values[..., :k] * scale[..., 0]


def core_values(core: Core) -> np.ndarray:
    """Singular values of the core as it is, to about 1e-15 of the largest."""
    C = core.matrix.double().numpy().astype(np.longdouble)
    scale = np.abs(C).max(axis=(-2, -1), keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    return np.linalg.svd((C / scale).astype(np.float64), compute_uv=False) * scale[..., 0]


def assert_bounded(x: Decomposed) -> None:
    """The error of the core is within its bound; LAPACK's own is 40 eps sigma_1 at most here."""
    (core,) = cores([x], vectors=False)
    want, got = reference_values(x), core_values(core)
    assert got.shape == want.shape
    error = np.sqrt(((got - want) ** 2).sum(axis=-1))
    floor = 40 * EPS64 * want[..., 0]
    assert (error <= core.error.numpy() + floor).all(), (error, core.error)


BAD: dict[str, Decomposed] = {}


def bad(name: str, U, Sigma, Vh, dtype=torch.float32) -> None:
    BAD[name] = Decomposed(*(torch.as_tensor(np.asarray(x)).to(dtype) for x in (U, Sigma, Vh)))


_G = matrices.gaussian
bad("equal columns", np.ones((20, 6)), _G(6, 6), _G(6, 15))
bad("zero U", np.zeros((20, 6)), _G(6, 6), _G(6, 15))
bad("zero Sigma", _G(20, 6), np.zeros((6, 6)), _G(6, 15))
bad("zero column", _G(20, 6) * (np.arange(6) != 2), _G(6, 6), _G(6, 15))
bad("rank 2 of 6", _G(20, 2) @ _G(2, 6, 1), _G(6, 6), _G(6, 15))
bad("Hilbert", matrices.hilbert(30)[:, :9], _G(9, 9), matrices.hilbert(40)[:9])
bad("nearly dependent", np.ones((40, 8)) + 1e-4 * _G(40, 8), _G(8, 8), _G(8, 30))
bad("Kahan", np.vstack([matrices.kahan(30), _G(10, 30) * 1e-5]), np.eye(30), _G(30, 40))
bad("columns from 1e-12 to 1e12", _G(40, 13) * np.logspace(-12, 12, 13),
    np.diag(np.logspace(12, -12, 13)), _G(13, 25))  # fmt: skip
bad("Sigma of rank 1", _G(40, 13), np.ones((13, 13)), _G(13, 25))
bad("1e30", 1e30 * _G(20, 6), 1e-30 * _G(6, 6), _G(6, 15))
bad("1e-30", 1e-30 * _G(20, 6), 1e30 * _G(6, 6), _G(6, 15))
bad("denormal core", 1e-20 * _G(20, 6), 1e-20 * _G(6, 6), _G(6, 15))
bad("float64 at its ends", 1e300 * _G(20, 6), 1e-300 * _G(6, 6), _G(6, 15), torch.float64)
bad("float64, 1e-200", 1e-200 * _G(20, 6), 1e100 * _G(6, 6), _G(6, 15), torch.float64)
bad("float64 Hilbert", matrices.hilbert(30)[:, :9], _G(9, 9), matrices.hilbert(40)[:9],
    torch.float64)  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_the_bound_holds_in_bad_cases(name: str, every_isa: str) -> None:
    assert_bounded(BAD[name])


SHAPES = [
    (200, 150, 70),
    (20, 12, 5),
    (12, 20, 12),
    (9, 9, 9),
    (4, 20, 7),
    (20, 4, 7),
    (5, 6, 9),
    (1, 1, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_cores(shape, dtype, batch, every_isa: str) -> None:
    m, n, k = shape
    x = gaussian(m, n, k, batch, dtype)
    (core,) = cores([x], vectors=True)
    p, q = min(m, k), min(n, k)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert core.matrix.shape == (*batch, p, q)
    assert core.matrix.dtype == core.left.dtype == core.right.dtype == wide
    assert core.error.shape == batch
    assert core.error.dtype == torch.float64
    eps = torch.finfo(wide).eps
    eye_p, eye_q = torch.eye(p).double(), torch.eye(q).double()
    left, right = core.left.double(), core.right.double()
    assert (left.mT @ left - eye_p).abs().max() <= 10 * eps
    assert (right @ right.mT - eye_q).abs().max() <= 10 * eps
    want = torch.from_numpy(exact(x).astype(np.float64))
    got = left @ core.matrix.double() @ right
    largest = torch.linalg.matrix_norm(want, 2).max()
    assert (got - want).abs().max() <= 10 * eps * largest
    assert_bounded(x)
    plain = cores([x], vectors=False)[0]
    assert plain.left.shape == (*batch, m, 0)
    assert plain.right.shape == (*batch, 0, n)
    assert plain.matrix.equal(core.matrix)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 12), n=st.integers(1, 12), k=st.integers(1, 8), seed=st.integers(0, 10**6),
    power=st.integers(0, 12), rank=st.integers(0, 8), wide=st.booleans(),
)  # fmt: skip
def test_the_bound_holds(every_isa, m, n, k, seed, power, rank, wide) -> None:
    """Of factors of any rank whose columns shrink by up to 1e-12 and grow back in Sigma."""
    r = matrices.rng(seed)
    U = r.standard_normal((m, rank)) @ r.standard_normal((rank, k))
    U = U + 10.0**-power * r.standard_normal((m, k))
    shrink = np.logspace(0, -power, k)
    Sigma = r.standard_normal((k, k)) / shrink[:, None]
    Vh = r.standard_normal((k, n))
    dtype = torch.float64 if wide else torch.float32
    assert_bounded(Decomposed(*(torch.from_numpy(x).to(dtype) for x in (U * shrink, Sigma, Vh))))


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 6 * EPS32), (torch.float64, 3e-9)], ids=str
)
@pytest.mark.parametrize("shape", [(128, 128, 64), (512, 128, 89), (768, 768, 192)], ids=str)
def test_the_bound_is_useful(shape, dtype, most, every_isa: str) -> None:
    """Measured, relative to sigma_1: 2.8e-7 to 4.9e-7 in float32, nearly all of it the rounding of
    the core's entries; 4e-11 to 1.1e-9 in float64, where errors are 1e-15: gammas are worst cases.
    """
    (core,) = cores([trained(*shape, dtype=dtype)], vectors=False)
    assert core.error.item() <= most * core_values(core)[0]


def test_orthonormal_where_factors_are_dependent(every_isa: str) -> None:
    for name, x in BAD.items():
        (core,) = cores([x], vectors=True)
        eps = torch.finfo(core.left.dtype).eps
        for Q in (core.left.double(), core.right.mT.double()):
            eye = torch.eye(Q.shape[-1], dtype=torch.float64)
            assert (Q.mT @ Q - eye).abs().max() <= 10 * eps, name


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("vectors", [False, True])
def test_not_finite(part: int, value: float, vectors: bool, every_isa: str) -> None:
    x = gaussian(9, 7, 4, (3,))
    clean = cores([x], vectors=vectors)[0]
    x[part][1, 0, 0] = value
    found = cores([x, gaussian(9, 7, 4)], vectors=vectors)
    assert found[0].matrix[1].isnan().all()
    assert found[0].error[1].isnan()
    assert found[0].left[1].isnan().all()
    for field, before in zip(found[0], clean, strict=True):
        assert field[[0, 2]].equal(before[[0, 2]])
    assert found[1].matrix.isfinite().all()


def test_beyond_the_range_of_the_core(every_isa: str) -> None:
    x = gaussian(9, 7, 4, (2,))
    x.Sigma[0] *= 1e30
    x.U[0] *= 1e20
    (core,) = cores([x], vectors=False)
    assert core.matrix[0].isnan().all()
    assert core.error[0].isnan()
    assert core.matrix[1].isfinite().all()


def test_a_zero_matrix_has_no_error(every_isa: str) -> None:
    x = gaussian(9, 7, 4, (2,))
    x.Sigma[0] = 0.0
    (core,) = cores([x], vectors=False)
    assert core.error[0] == 0.0
    assert core.error[1] > 0.0


def test_ragged_lists_and_some_vectors(every_isa: str) -> None:
    xs = [gaussian(9, 7, 4), gaussian(5, 8, 3, (2,)), gaussian(9, 7, 4, seed=5)]
    together = cores(xs, vectors=[True, False, True])
    for x, core, vectors in zip(xs, together, [True, False, True], strict=True):
        alone = cores([x], vectors=vectors)[0]
        for field, expected in zip(core, alone, strict=True):
            torch.testing.assert_close(field, expected, rtol=1e-6, atol=1e-6)
    assert cores([], vectors=True) == []


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 2), (5, 0, 2), (5, 4, 0), (0, 0, 0)])
@pytest.mark.parametrize("batch", [(), (2,), (0,)], ids=str)
def test_empty(m: int, n: int, k: int, batch, every_isa: str) -> None:
    (core,) = cores([gaussian(m, n, k, batch)], vectors=True)
    assert core.matrix.shape == (*batch, min(m, k), min(k, n))
    assert core.left.shape == (*batch, m, min(m, k))
    assert core.right.shape == (*batch, min(k, n), n)
    assert core.error.eq(0).all()


def test_continuous(every_isa: str) -> None:
    """A step of 1e-4 moves a core by its size, wherever signs of a plain QR would jump."""
    x = trained(60, 50, 20)
    for seed in range(5):
        step = gaussian(60, 50, 20, seed=seed)
        y = Decomposed(*(a + 1e-4 * b for a, b in zip(x, step, strict=True)))
        before, after = cores([x, y], vectors=False)
        assert (after.matrix - before.matrix).norm() <= 0.1
        # The decision between the two ways to a triangle does not show either.
        x = y


def test_cholesky_and_householder_agree(every_isa: str) -> None:
    x = trained(60, 50, 20)
    near = cores([x], vectors=True)[0]
    far = cores([Decomposed(*(part.double() for part in x))], vectors=True)[0]
    for a, b in zip(
        (near.matrix, near.left, near.right), (far.matrix, far.left, far.right), strict=True
    ):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4 * EPS32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lift(shape) -> None:
    m, n, k = shape
    x = gaussian(m, n, k, (2,), torch.float64)
    (core,) = cores([x], vectors=True)
    svd = SVD(*torch.linalg.svd(core.matrix, full_matrices=False))
    lifted = lift(core, svd)
    want = torch.from_numpy(exact(x).astype(np.float64))
    torch.testing.assert_close((lifted.U * lifted.S.unsqueeze(-2)) @ lifted.Vh, want)
    assert lifted.U.mT.is_contiguous()
    out = SVD(*(torch.empty_like(part) for part in lifted))
    assert lift(core, svd, out) is out
    for a, b in zip(out, lifted, strict=True):
        assert a.equal(b)


def whole(x: Decomposed) -> torch.Tensor:
    """Return U Sigma Vh in float64."""
    U, Sigma, Vh = (part.double() for part in x)
    return U @ Sigma @ Vh


def test_lift_under_autocast() -> None:
    x = trained(30, 20, 6)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sk.usv_svd(*x)
        tracker = sk.SpectrumTracker(reuse_buffers=True)
        for _ in range(2):
            tracked = tracker.update(x)
    for a, b in zip(sk.usv_svd(*x), inside, strict=True):
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
    S = sk.usv_svdvals(*x)
    assert S.shape == (2, r)
    np.testing.assert_allclose(S, want[..., :r], rtol=0, atol=atol)
    assert sk.svdvals(x).equal(S)
    found = sk.usv_svd(*x)
    assert [tuple(part.shape) for part in found] == [(2, m, r), (2, r), (2, r, n)]
    # LAPACK's float32 values with vectors, which plain torch returns, err by 9 eps here.
    np.testing.assert_allclose(found.S, want[..., :r], rtol=0, atol=2 * atol)
    U, S, Vh = (part.double() for part in found)
    torch.testing.assert_close((U * S.unsqueeze(-2)) @ Vh, whole(x), rtol=0, atol=20 * atol)
    for Q in (U, Vh.mT):
        assert (Q.mT @ Q - torch.eye(r)).abs().max() <= 40 * eps
    assert (U.gather(-2, U.abs().argmax(dim=-2, keepdim=True)) > 0).all()
    assert found.U.mT.is_contiguous()
    for a, b in zip(sk.svd(x), found, strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("name", BAD)
def test_values_in_bad_cases(name: str, every_isa: str) -> None:
    """Errors are within 8 eps sigma_1 of the type, whatever the factors are: see the contract.

    Where a product cancels, its own rounding in float64 is larger than eps sigma_1 of float64.
    """
    x = BAD[name]
    want = reference_values(x)
    got = sk.usv_svdvals(*x).double().numpy()
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
    np.testing.assert_array_equal(values[2], sk.usv_svdvals(*numpy))
    found = sk.svd((numpy, A))
    assert isinstance(found, list)
    assert isinstance(found[0].U, np.ndarray)
    assert found[0].Vh.shape == (3, 8)
    both = sk.usv_svdvals([x.U, y.U], [diagonal, y.Sigma], [x.Vh, y.Vh])
    assert both[0].equal(sk.usv_svdvals(x.U, torch.diag(diagonal), x.Vh))
    assert both[0].equal(sk.svdvals(Decomposed(x.U, diagonal, x.Vh)))
    assert sk.usv_svd([], [], []) == []


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
        "svdvals": lambda *f: sk.usv_svdvals(*f),
        "effective_rank": lambda *f: sk.effective_rank(Decomposed(*f)),
        "stable_rank": lambda *f: sk.stable_rank(Decomposed(*f)),
        "summary": lambda *f: sk.spectral_summary(Decomposed(*f)).nuclear_norm,
    }
    assert torch.autograd.gradcheck(functions[function], x)


def test_gradients_of_a_diagonal_core_and_of_float32() -> None:
    U, Sigma, Vh = (part.requires_grad_() for part in gaussian(7, 6, 3, dtype=torch.float64))
    diagonal = Sigma.detach().diagonal().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *f: sk.usv_svdvals(*f), (U, diagonal, Vh))
    single = [part.detach().float().requires_grad_() for part in (U, Sigma, Vh)]
    sk.usv_svdvals(*single).square().sum().backward()
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
    x = [part.requires_grad_() for part in gaussian(7, 6, 3)]
    with pytest.raises(RuntimeError, match="non-differentiable"):
        sk.usv_svd(*x).U.sum().backward()


def test_errors() -> None:
    x, y = gaussian(9, 7, 4), gaussian(9, 7, 3)
    with pytest.raises(ValueError, match=r"shapes do not chain of A: U is \(9, 4\)"):
        sk.svdvals(Decomposed(x.U, y.Sigma, x.Vh))
    with pytest.raises(ValueError, match=r"shapes do not chain of A\[1\]"):
        sk.stable_rank([x, Decomposed(x.U, y.Sigma, x.Vh)])
    with pytest.raises(ValueError, match=r"shapes do not chain: U is"):
        sk.usv_svd(x.U, y.Sigma, x.Vh)
    with pytest.raises(TypeError, match=r"Sigma of A has dtype int64"):
        sk.svd(Decomposed(x.U, x.Sigma.long(), x.Vh))
    with pytest.raises(ValueError, match="different kinds"):
        sk.usv_svdvals(x.U, x.Sigma.numpy(), x.Vh)
    x.Vh[0, 0] = math.nan
    assert sk.svdvals(x).isnan().all()
    with pytest.raises(ValueError, match=r"Vh of A holds NaN or Inf"):
        sk.svdvals(x, check_finite=True)
    with pytest.raises(ValueError, match=r"Sigma of A\[0\] holds NaN"):
        sk.usv_svd([y.U], [y.Sigma.diagonal() * math.nan], [y.Vh], check_finite=True)


def walk(m: int, n: int, k: int, steps: int, batch=(), dtype=torch.float32):
    """Yield factors that move a little each time, as training moves them."""
    x = Decomposed(*(part / math.sqrt(part.shape[-1]) for part in gaussian(m, n, k, batch, dtype)))
    for step in range(steps):
        yield x
        move = gaussian(m, n, k, batch, dtype, seed=step + 1)
        x = Decomposed(*(a + 1e-3 * b for a, b in zip(x, move, strict=True)))


@pytest.mark.parametrize("reuse", [False, True], ids=["copies", "reused"])
@pytest.mark.parametrize("k", [None, 3], ids=["whole", "leading"])
def test_tracker(k, reuse: bool, backend) -> None:
    """Single, in a list with a matrix, batched; bounds hold and vectors are those of the whole."""
    tracker = sk.SpectrumTracker(k, reuse_buffers=reuse)
    dense = torch.randn(10, 8)
    for x, y in zip(walk(30, 20, 6, 8), walk(12, 14, 5, 8, (2,)), strict=True):
        dense += 1e-3 * torch.randn(10, 8)
        found = tracker.update([x, dense, y])
        bounds, norms = tracker.bounds, tracker.error_norms
        assert [part.shape for part in found[0]] == [(30, k or 6), (k or 6,), (k or 6, 20)]
        for i, z in ((0, x), (2, y)):
            want = torch.from_numpy(reference_values(z).astype(np.float64))
            t = found[i].S.shape[-1]
            error = (found[i].S.double() - want[..., :t]).abs()
            assert (error <= bounds[i]).all()
            assert (error.norm(dim=-1) <= norms[i]).all()
            (core,) = cores([z], vectors=False)
            assert (bounds[i] >= core.error.unsqueeze(-1)).all()
            U, S, Vh = (part.double() for part in found[i])
            left = (whole(z) @ Vh.mT - U * S.unsqueeze(-2)).norm(dim=-2)
            if k is None:
                assert (left <= 1e-2 * S[..., :1]).all()
            else:
                assert (left <= tracker.residuals[i] + 1e-6 * S[..., :1]).all()
        torch.testing.assert_close(found[1].S, sk.svdvals(dense)[:k], rtol=0, atol=1e-2)
    assert set(tracker.work) <= {
        "kept", "rotated", "rotated twice", "rotated three times", "one iteration",
        "two iterations", "three iterations",
    }  # fmt: skip
    assert tracker.resolves == 0


def test_tracker_of_a_single_one_and_of_numpy() -> None:
    tracker = sk.SpectrumTracker()
    for x in walk(9, 7, 4, 3):
        found = tracker.update(Decomposed(*(part.numpy() for part in x)))
        assert isinstance(found, SVD)
        assert isinstance(found.U, np.ndarray)
        assert isinstance(tracker.bounds, np.ndarray)
        np.testing.assert_allclose(found.S, reference_values(x), atol=1e-2)


def test_tracker_keeps_signs_and_hands_out_the_same_memory() -> None:
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    first, *others = walk(30, 20, 6, 5)
    before = tracker.update(first).U
    place, old = before.data_ptr(), before.clone()
    for x in others:
        found = tracker.update(Decomposed(*(part.requires_grad_() for part in x)))
        assert not found.U.requires_grad
        assert found.U.data_ptr() == place
        assert ((found.U * old).sum(dim=0) > 0.9).all()
        old = found.U.clone()


@pytest.mark.parametrize("k", [None, 3], ids=["whole", "leading"])
def test_tracker_state(k, backend) -> None:
    steps = list(walk(30, 20, 6, 6))
    A = torch.randn(8, 8)
    first = sk.SpectrumTracker(k)
    for x in steps[:3]:
        first.update([A, x])
    state = first.state_dict()
    assert state["shapes"] == [(8, 8), (30, 20)]
    assert state["ranks"] == [None, 6]
    second = sk.SpectrumTracker(k)
    second.load_state_dict(state)
    for x in steps[3:]:
        for a, b in zip(first.update([A, x]), second.update([A, x]), strict=True):
            for p, q in zip(a, b, strict=True):
                assert p.equal(q)
    assert second.resolves == 0


@pytest.mark.parametrize("k", [None, 2])
def test_tracker_takes_another_dtype(k: int | None) -> None:
    tracker = sk.SpectrumTracker(k, reuse_buffers=True)
    for dtype in (torch.float32, torch.float64, torch.float32):
        factors = torch.randn(7, 3), torch.randn(3, 3), torch.randn(3, 5)
        found = tracker.update(Decomposed(*(x.to(dtype) for x in factors)))
        assert all(x.dtype == dtype for x in found)
        truth = torch.linalg.svdvals(torch.linalg.multi_dot([x.double() for x in factors]))
        assert ((found.S - truth[: len(found.S)]).abs() <= tracker.bounds).all()


@pytest.mark.parametrize("k", [None, 2])
def test_tracker_takes_a_state_from_before_decomposed_matrices(k: int | None) -> None:
    tracker = sk.SpectrumTracker(k)
    tracker.update([torch.eye(3), torch.eye(4)])
    state = tracker.state_dict()
    del state["ranks"]
    other = sk.SpectrumTracker(k)
    other.load_state_dict(state)
    assert other.state_dict()["ranks"] == [None, None]
    other.update([torch.eye(3), torch.eye(4)])
    assert (other.resolves, other.work == tracker.work) == (0, False)
    fresh = sk.SpectrumTracker(k).state_dict()
    del fresh["ranks"]
    other.load_state_dict(fresh)


def test_tracker_refuses_another_rank() -> None:
    tracker = sk.SpectrumTracker()
    tracker.update([gaussian(9, 7, 4)])
    with pytest.raises(
        ValueError, match=r"A\[0\] has shape \(9, 7\) of rank 3 and had \(9, 7\) of"
    ):
        tracker.update([gaussian(9, 7, 3)])
    with pytest.raises(ValueError, match=r"A\[0\] has shape \(9, 7\) and had \(9, 7\) of rank 4"):
        tracker.update([torch.randn(9, 7)])
    tracker.reset()
    assert tracker.update([gaussian(9, 7, 3)])[0].S.shape == (3,)


def test_tracker_goes_on_after_nan() -> None:
    tracker = sk.SpectrumTracker()
    steps = list(walk(9, 7, 4, 3))
    tracker.update(steps[0])
    steps[1].U[0, 0] = math.nan
    assert tracker.update(steps[1]).S.isnan().all()
    assert tracker.bounds.isnan().all()
    assert tracker.work == ["not finite"]
    tracker.update(steps[2])
    assert tracker.bounds.isfinite().all()
    assert tracker.resolves == 0
