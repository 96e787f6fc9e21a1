"""The kernels of an update, each against the formula it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_kernels.tracking.bounds import certify
from spectral_kernels.tracking.whole import triton_certificate_kernels as kernels
from spectral_kernels.tracking.whole import triton_steps
from spectral_kernels.tracking.whole.groups import Group, Member, workspace_length
from spectral_kernels.tracking.whole.state import State
from spectral_kernels.tracking.whole.torch_backend import _rotation
from spectral_kernels.tracking.whole.triton_launches import multiply, multiply_where
from tests.support import matrices

# Columns of what is proved.
DRIFT, TOP, ROUNDING, ERROR_NORM = (
    getattr(kernels, name).value for name in ("DRIFT", "TOP", "ROUNDING", "ERROR_NORM")
)


def chunk(X: Tensor, V: Tensor, drift: Tensor, tolerance: float = 1e-3) -> triton_steps.Chunk:
    """A chunk with W = X V and S in place, for X (B, M, r) and V (B, r, r)."""
    count, M, r = X.shape
    group = Group(M, r, torch.float64, X.device, [Member(0, 0, count, tall=True)])
    state = State.cold(count, r, torch.float64, X.device)
    group.allocate([state], [[i, i * r, i * r] for i in range(count)])
    memory = torch.full((workspace_length(count, M, r),), float("nan"), dtype=torch.float64)
    eps = torch.finfo(torch.float64).eps
    settings = torch.tensor((tolerance, eps, 5e-324), dtype=torch.float64)
    found = triton_steps.Chunk(group, slice(0, count), memory, settings)
    found.space.X.copy_(X)
    found.space.W.copy_(X @ V)
    found.space.S.copy_(found.space.W.mT @ found.space.W)
    found.new_drift.copy_(drift)
    return found


def examples(M: int, r: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices with spectra of all kinds, and vectors that are right or not at all."""
    Xs, Vs = [], []
    for seed in range(count):
        generator = matrices.rng(seed)
        sigma = np.logspace(0, -generator.choice([0.1, 1.0, 4.0, 12.0]), r)
        X = matrices.with_spectrum(M, r, sigma, seed)
        V = np.linalg.svd(X).Vh.T
        # The first is right, and its bounds are those of rounding.
        if seed > 0:
            slip = 10 ** generator.uniform(-6, 0) * matrices.gaussian(r, r, seed)
            V = V @ np.linalg.qr(np.eye(r) + slip).Q
            V += 10 ** generator.uniform(-6, -0.5) * matrices.gaussian(r, r, seed + 1)
        Xs.append(X)
        Vs.append(V)
    return (
        torch.from_numpy(np.stack(Xs)),
        torch.from_numpy(np.stack(Vs)),
        torch.from_numpy(np.stack([np.linalg.svd(X, compute_uv=False) for X in Xs])),
    )


@pytest.mark.parametrize(("M", "r"), [(14, 9), (33, 33), (70, 65), (4, 1)])
def test_the_certificate_is_the_theorem(M: int, r: int) -> None:
    """The numbers of ``bounds.certify``, from which the bounds of an update are made."""
    X, V, truth = examples(M, r, 12 if r < 60 else 3)
    departure = V.mT @ V - torch.eye(r)
    rows = departure.abs().sum(dim=-1).amax(dim=-1)
    drift = torch.minimum(torch.linalg.matrix_norm(departure), rows) + r * r * 2.0**-53
    found = chunk(X, V, drift)
    found._certify(first=True)
    reports = found.proved
    for i in range(len(X)):
        values, radii, rounding, norm = certify(found.space.S[i], departure[i], M, torch.float64)
        torch.testing.assert_close(found.values[i], values, rtol=1e-15, atol=0)
        assert float(reports[i, TOP]) == pytest.approx(float(values.max()), rel=1e-15)
        assert float(reports[i, ROUNDING]) == pytest.approx(float(rounding), rel=1e-9, abs=0)
        # Rounding of 1 / sqrt(1 - f) - 1, which is nothing beside that of the products.
        slack = 5e-16 * float(values.norm())
        assert float(reports[i, ERROR_NORM]) == pytest.approx(float(norm), rel=1e-9, abs=slack)
        asks = bool(radii.max() > 1e-3 * values.max())
        assert bool(found.asked[i]) == asks
        assert int(found.turns[i]) == 0
        error = float((values.sort(descending=True)[0] - truth[i]).norm())
        assert error <= float(reports[i, ERROR_NORM])
    assert r == 1 or int(found.asked.sum()) > 0


def test_later_certificates_are_of_those_that_asked() -> None:
    X, V, _ = examples(14, 9, 6)
    found = chunk(X, V, torch.zeros(6))
    found._certify(first=True)
    found.asked.copy_(torch.tensor([1, 0, 1, 0, 0, 1]))
    found.sums[:, 4:] = 0
    before = found.proved.clone()
    found.space.S.mul_(4.0)
    found._certify(first=False)
    assert found.turns.tolist() == [1, 0, 1, 0, 0, 1]
    torch.testing.assert_close(found.proved[[1, 3, 4]], before[[1, 3, 4]], rtol=0, atol=0)
    torch.testing.assert_close(found.proved[[0, 2, 5], TOP], 2 * before[[0, 2, 5], TOP])
    # N^T N = I as measured: what is left is the rounding of the products.
    assert 0 < float(found.proved[0, DRIFT]) < 1e-12
    assert float(found.new_drift[1]) == 0


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("r", [1, 9, 32, 33, 65])
def test_a_rotation(r: int, everywhere: bool) -> None:
    """R is that of the plain formula; V R is orthonormal to what the bound says, or untouched."""
    X, V, _ = examples(r + 5, r, 4)
    V = torch.linalg.qr(V).Q
    # Equal values, two with a large cosine and two with one of rounding, and a zero column.
    V[2] = torch.eye(r)
    X[2] = torch.eye(r + 5, r)
    X[2, : min(r, 2), : min(r, 2)] = torch.tensor([[2.0, 1.0], [1.0, 2.0]])[
        : min(r, 2), : min(r, 2)
    ]
    X[2, 3, 2:3] = 1e-17
    X[2, :, 5:6] = 0.0
    found = chunk(X, V, torch.full((4,), 1e-12, dtype=torch.float64))
    found._certify(first=True)
    asked = torch.tensor([1, 0, 1, 1], dtype=torch.int32)
    found.asked.copy_(asked)
    found.vectors.copy_(V)
    S = found.space.S.clone()
    product = multiply if everywhere else found._where_asked
    found._rotate(found.vectors, product, everywhere)
    found._certify(first=False)
    for i in range(4):
        if not asked[i]:
            kept = found.space.V[i]
            assert torch.equal(kept, V[i]) if everywhere else bool(kept.isnan().all())
            continue
        R = _rotation(S[i], r + 5)
        torch.testing.assert_close(found.space.R[i], R, rtol=1e-9, atol=1e-12)
        turned = V[i] @ R
        turned = turned @ (1.5 * torch.eye(r).double() - 0.5 * turned.mT @ turned)
        torch.testing.assert_close(found.space.V[i], turned, rtol=0, atol=1e-12)
        left = found.space.V[i].mT @ found.space.V[i] - torch.eye(r)
        assert float(torch.linalg.matrix_norm(left, 2)) <= float(found.new_drift[i]) < 5e-3
        torch.testing.assert_close(found.space.W[i], X[i] @ turned, rtol=0, atol=1e-11)


def test_the_drift_after_the_largest_rotation_is_a_bound() -> None:
    """Rows of E at their limit: Newton-Schulz leaves 3/4 F^2 of F = E^4 / 4."""
    r = 24
    skew = torch.from_numpy(matrices.gaussian(r, r)).triu(1)
    E = skew - skew.mT
    E *= 0.6 / E.abs().sum(dim=-1).max()
    N = torch.eye(r) + E + E @ E / 2
    found = chunk(torch.zeros(1, r, r).double(), torch.eye(r)[None].double(), torch.zeros(1))
    found.asked.fill_(1)
    found.space.N.copy_(N)
    for factor in (1.0, 3.0):
        found.space.N.copy_(factor * N)
        found.space.S.copy_(found.space.N.mT @ found.space.N)
        gram = found.space.S.clone()
        found._orthonormalise(True)
        found.asked.fill_(1)
        found._certify(first=False)
        V = found.space.N[0] @ (1.5 * torch.eye(r).double() - 0.5 * gram[0])
        left = float(torch.linalg.matrix_norm(V.mT @ V - torch.eye(r), 2))
        # Of what is nowhere near orthonormal nothing is claimed.
        bound = float(found.new_drift[0])
        assert left <= bound < 10 * left + 1e-12 if factor == 1.0 else bound == 1.0


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 64, 3), (64, 65, 16), (130, 3, 33)])
def test_asked_products(shape: tuple[int, int, int]) -> None:
    rows, cols, depth = shape
    a = torch.randn(3, depth, rows).double().mT
    b = torch.randn(3, depth, 2 * cols).float()[..., ::2]
    asked = torch.tensor([1, 0, 1], dtype=torch.int32)
    for alpha, add in ((1.0, False), (0.5, True)):
        out = torch.randn(3, rows, cols).double()
        before = out.clone()
        multiply_where(asked, a, b, out, alpha, add)
        expected = alpha * (a @ b.double()) + (before if add else 0)
        expected[1] = before[1]
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-13 * depth)


def test_entries_far_from_one() -> None:
    """Float64 matrices whose squares, or whose products of squares, would not fit."""
    for size in (1e300, 1e-300, 1e100, 1.0):
        found = chunk(
            size * torch.eye(3).double()[None], torch.eye(3)[None].double(), torch.zeros(1)
        )
        found.normalise()
        largest = float(found.space.X.abs().max())
        assert 0.5 <= largest < 1.0
        assert largest * float(found.scales[0, 0]) * float(found.scales[0, 1]) == size
