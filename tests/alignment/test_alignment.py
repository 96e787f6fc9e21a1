"""Alignments, agreements and overlaps against the references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spectral_kernels as sk
from spectral_kernels.alignment import truth
from tests.support import matrices

SHAPES = [(40, 30, 25), (30, 40, 40), (64, 64, 64), (513, 120, 110), (1, 1, 1), (7, 3, 5)]


def vectors(m: int, r: int, next_r: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    r, next_r = min(m, r), min(m, next_r)
    U = torch.from_numpy(matrices.orthonormal(m, r, seed=1)).to(dtype)
    Vh = torch.from_numpy(matrices.orthonormal(m, next_r, seed=2).T.copy()).to(dtype)
    return U, Vh


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 5, 100, 1000])
def test_diagonal(shape: tuple[int, int, int], dtype: torch.dtype, k: int, every_isa: str) -> None:
    U, Vh = vectors(*shape, dtype)
    want = truth.alignment_diagonal(U.double().numpy(), Vh.double().numpy(), k)
    got = sk.alignment_diagonal(U, Vh, k)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.dtype == wide
    # Accumulated in float64: only the rounding of the result is left.
    np.testing.assert_allclose(got.numpy(), want, rtol=torch.finfo(wide).eps, atol=1e-15)


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_diagonal_of_any_layout(transposed: tuple[int, int], every_isa: str) -> None:
    U, Vh = vectors(50, 20, 30, torch.float32)
    want = truth.alignment_diagonal(U.numpy(), Vh.numpy(), 12)
    # By columns is how svd returns U, so that is the other case.
    U = matrices.layouts(U)["strided in both sides"] if transposed[0] else U.mT.contiguous().mT
    if transposed[1]:
        Vh = matrices.layouts(Vh)["strided in both sides"]
    np.testing.assert_allclose(sk.alignment_diagonal(U, Vh, 12).numpy(), want, rtol=2e-7)


def test_diagonal_of_batches_and_lists(backend: str) -> None:
    a, b = sk.svd(torch.randn(2, 3, 20, 10)), sk.svd(torch.randn(2, 3, 16, 20))
    got = sk.alignment_diagonal(a.U, b.Vh, 7)
    want = truth.alignment_diagonal(a.U.numpy(), b.Vh.numpy(), 7)
    np.testing.assert_allclose(got.numpy(), want, rtol=2e-7)
    permuted = sk.alignment_diagonal(a.U.transpose(0, 1), b.Vh.transpose(0, 1), 7)
    assert torch.equal(permuted, got.transpose(0, 1))
    ragged = sk.alignment_diagonal([a.U, a.U[0, 0]], [b.Vh, b.Vh[0, 0]], k=100)
    assert [x.shape for x in ragged] == [(2, 3, 10), (10,)]
    assert torch.equal(ragged[1], ragged[0][0, 0])
    assert sk.alignment_diagonal([], []) == []


def test_diagonal_of_empty_sides(backend: str) -> None:
    assert sk.alignment_diagonal(torch.empty(4, 0), torch.empty(3, 4)).shape == (0,)
    assert sk.alignment_diagonal(torch.empty(0, 4, 2), torch.empty(0, 3, 4)).shape == (0, 2)
    assert sk.alignment_diagonal(torch.empty(0, 3), torch.empty(2, 0)).tolist() == [0, 0]


def test_nan_stays_in_its_vector(backend: str) -> None:
    U, Vh = vectors(20, 6, 6, torch.float32)
    clean = sk.alignment_diagonal(U, Vh)
    U[3, 2] = float("nan")
    got = sk.alignment_diagonal(U, Vh)
    assert got.isnan().tolist() == [False, False, True, False, False, False]
    assert torch.equal(got[:2], clean[:2])


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_matrix(kind: str) -> None:
    U, Vh = vectors(40, 30, 25, torch.float64)
    want = truth.alignment_matrix(U.numpy(), Vh.numpy())
    got = (
        sk.alignment_matrix(U, Vh)
        if kind == "torch"
        else sk.alignment_matrix(*map(np.asarray, (U, Vh)))
    )
    assert got.shape == (30, 25)
    np.testing.assert_allclose(np.asarray(got), want, atol=1e-14)
    np.testing.assert_allclose(
        np.diagonal(np.asarray(got)), np.asarray(sk.alignment_diagonal(U, Vh)), atol=1e-14
    )


def test_aligned_layers_have_alignment_one(backend: str) -> None:
    """Balanced layers: the next one reads in the directions that the last one writes."""
    first = sk.svd(torch.randn(30, 20))
    following = (
        torch.linalg.qr(torch.randn(15, 15)).Q
        @ torch.diag(torch.arange(15.0, 0, -1))
        @ first.U[:, :15].mT
    )
    got = sk.alignment_diagonal(first.U, sk.svd(following).Vh)
    assert (got > 1 - 1e-5).all()
    assert float(sk.alignment_score(got)) == pytest.approx(1, abs=1e-5)


def test_score() -> None:
    diagonal = torch.arange(20.0, 0, -1).expand(2, 20)
    assert sk.alignment_score(diagonal).tolist() == [15.5, 15.5]
    assert sk.alignment_score(diagonal, top=2).tolist() == [19.5, 19.5]
    assert float(sk.alignment_score(np.array([3.0, 1.0]))) == 2
    assert np.isnan(sk.alignment_score(np.array([])))
    assert sk.alignment_score(torch.ones(2, 0)).isnan().tolist() == [True, True]
    assert [float(x) for x in sk.alignment_score([diagonal[0], diagonal[0, :4]])] == [15.5, 18.5]


def test_agreement(every_isa: str) -> None:
    A = torch.randn(3, 40, 30)
    a, b = sk.svd(A), sk.svd(A + 0.1 * torch.randn(A.shape))
    want = truth.agreement(
        sk.SVD(*(x.double().numpy() for x in a)), sk.SVD(*(x.double().numpy() for x in b)), 12
    )
    got = sk.singular_vector_agreement(a, b, k=12)
    assert got.shape == (3, 12)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6)
    flipped = sk.SVD(-b.U, b.S, b.Vh)
    assert torch.equal(sk.singular_vector_agreement(a, flipped, k=12), got)
    itself = sk.singular_vector_agreement(a, a)
    np.testing.assert_allclose(itself.numpy(), 1, atol=1e-5)
    listed = sk.singular_vector_agreement([a, b], [b, a], k=12)
    assert torch.equal(listed[0], got)
    np.testing.assert_allclose(listed[1].numpy(), want, rtol=1e-6)


def test_agreement_of_truncated_and_of_torch_results(backend: str) -> None:
    A = np.random.default_rng(0).standard_normal((30, 20))
    full, part = sk.svd(A), sk.rsvd(A, 5, power_iters=8)
    assert sk.singular_vector_agreement(full, part).shape == (5,)
    numpy_own = np.linalg.svd(A, full_matrices=False)
    np.testing.assert_allclose(sk.singular_vector_agreement(full, numpy_own), 1, atol=1e-10)


@given(m=st.integers(1, 40), k=st.integers(1, 12), seed=st.integers(0, 999))
def test_overlap(m: int, k: int, seed: int) -> None:
    k = min(k, m)
    Q_a, Q_b = matrices.orthonormal(m, k, seed), matrices.orthonormal(m, k, seed + 1)
    overlap = sk.subspace_overlap(Q_a, Q_b)
    assert -1e-12 <= overlap <= 1 + 1e-12
    np.testing.assert_allclose(overlap, truth.subspace_overlap(Q_a, Q_b), atol=1e-13)
    # Independent of the basis: turn one of them.
    turn = matrices.orthonormal(k, k, seed + 2)
    np.testing.assert_allclose(sk.subspace_overlap(Q_a @ turn, Q_b), overlap, atol=1e-12)
    np.testing.assert_allclose(sk.subspace_overlap(Q_a, Q_a @ turn), 1, atol=1e-12)


def test_overlap_of_contained_orthogonal_and_batched() -> None:
    Q = torch.linalg.qr(torch.randn(2, 20, 12)).Q
    torch.testing.assert_close(sk.subspace_overlap(Q[..., :5], Q), torch.ones(2))
    torch.testing.assert_close(sk.subspace_overlap(Q[..., :5], Q[..., 5:]), torch.zeros(2))
    assert float(sk.subspace_overlap(np.empty((4, 0)), np.eye(4))) == 0


def test_a_list_is_what_its_pairs_are(backend: str) -> None:
    factors = sk.svd([torch.randn(30, 20), torch.randn(25, 30), torch.randn(25, 30)])
    pairs = [(factors[0].U, factors[1].Vh), (factors[0].U, factors[2].Vh)]
    alone = [sk.alignment_diagonal(u, v, 9) for u, v in pairs]
    together = sk.alignment_diagonal([u for u, _ in pairs], [v for _, v in pairs], 9)
    assert all(torch.equal(x, y) for x, y in zip(alone, together, strict=True))
    assert sk.alignment_diagonal([], []) == []
