"""Cores of U Sigma Vh: their bounds, on hard factors too, and vectors lifted from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectral_kernels.entry.core.op import Core, cores, lift
from spectral_kernels.entry.results import SVD, Decomposed
from tests.support import matrices, tolerances
from tests.support.factored_matrices import (
    BAD,
    EPS32,
    SHAPES,
    exact,
    gaussian,
    reference_values,
    trained,
)


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
    floor = tolerances.LAPACK_OF_CORES * want[..., 0]
    assert (error <= core.error.numpy() + floor).all(), (error, core.error)


@pytest.mark.parametrize("name", BAD)
def test_the_bound_holds_in_bad_cases(name: str, every_isa: str) -> None:
    assert_bounded(BAD[name])


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
