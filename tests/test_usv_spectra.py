"""Spectra of U Sigma Vh from its factors: cores, their bounds, and what takes a Decomposed."""

from __future__ import annotations

import math

import matrices
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_kernels.decomposed.core import Core, cores, lift
from spectral_kernels.results import SVD, Decomposed

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
def test_the_bound_holds_in_bad_cases(name: str) -> None:
    assert_bounded(BAD[name])


SHAPES = [(20, 12, 5), (12, 20, 12), (9, 9, 9), (4, 20, 7), (20, 4, 7), (5, 6, 9), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_cores(shape, dtype, batch) -> None:
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


@given(
    m=st.integers(1, 12), n=st.integers(1, 12), k=st.integers(1, 8), seed=st.integers(0, 10**6),
    power=st.integers(0, 12), rank=st.integers(0, 8), wide=st.booleans(),
)  # fmt: skip
def test_the_bound_holds(m, n, k, seed, power, rank, wide) -> None:
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
def test_the_bound_is_useful(shape, dtype, most) -> None:
    """Measured, relative to sigma_1: 2.8e-7 to 4.9e-7 in float32, nearly all of it the rounding of
    the core's entries; 4e-11 to 1.1e-9 in float64, where errors are 1e-15: gammas are worst cases.
    """
    (core,) = cores([trained(*shape, dtype=dtype)], vectors=False)
    assert core.error.item() <= most * core_values(core)[0]


def test_orthonormal_where_factors_are_dependent() -> None:
    for name, x in BAD.items():
        (core,) = cores([x], vectors=True)
        eps = torch.finfo(core.left.dtype).eps
        for Q in (core.left.double(), core.right.mT.double()):
            eye = torch.eye(Q.shape[-1], dtype=torch.float64)
            assert (Q.mT @ Q - eye).abs().max() <= 10 * eps, name


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("vectors", [False, True])
def test_not_finite(part: int, value: float, vectors: bool) -> None:
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


def test_beyond_the_range_of_the_core() -> None:
    x = gaussian(9, 7, 4, (2,))
    x.Sigma[0] *= 1e30
    x.U[0] *= 1e20
    (core,) = cores([x], vectors=False)
    assert core.matrix[0].isnan().all()
    assert core.error[0].isnan()
    assert core.matrix[1].isfinite().all()


def test_ragged_lists_and_some_vectors() -> None:
    xs = [gaussian(9, 7, 4), gaussian(5, 8, 3, (2,)), gaussian(9, 7, 4, seed=5)]
    together = cores(xs, vectors=[True, False, True])
    for x, core, vectors in zip(xs, together, [True, False, True], strict=True):
        alone = cores([x], vectors=vectors)[0]
        for field, expected in zip(core, alone, strict=True):
            torch.testing.assert_close(field, expected, rtol=1e-6, atol=1e-6)
    assert cores([], vectors=True) == []


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 2), (5, 0, 2), (5, 4, 0), (0, 0, 0)])
@pytest.mark.parametrize("batch", [(), (2,), (0,)], ids=str)
def test_empty(m: int, n: int, k: int, batch) -> None:
    (core,) = cores([gaussian(m, n, k, batch)], vectors=True)
    assert core.matrix.shape == (*batch, min(m, k), min(k, n))
    assert core.left.shape == (*batch, m, min(m, k))
    assert core.right.shape == (*batch, min(k, n), n)
    assert core.error.eq(0).all()


def test_continuous() -> None:
    """A step of 1e-4 moves a core by its size, wherever signs of a plain QR would jump."""
    x = trained(60, 50, 20)
    for seed in range(5):
        step = gaussian(60, 50, 20, seed=seed)
        y = Decomposed(*(a + 1e-4 * b for a, b in zip(x, step, strict=True)))
        before, after = cores([x, y], vectors=False)
        assert (after.matrix - before.matrix).norm() <= 0.1
        # The decision between the two ways to a triangle does not show either.
        x = y


def test_cholesky_and_householder_agree() -> None:
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
