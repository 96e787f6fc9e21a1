"""Every operation on device tensors against NumPy, on each backend that can run there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import spectral_kernels as sk
from spectral_kernels.snapshot.op import snapshot_list
from spectral_kernels.snapshot.truth import statistics
from tests.support import matrices
from tests.support.svd_checks import check_values, check_vectors
from tests.support.trajectories import TRAJECTORIES

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ODD = [(1, 1), (1, 7), (5, 3), (17, 31), (33, 33), (59, 128), (128, 59), (200, 190), (64, 700)]


def on(device: str, A: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(A)).to(device, dtype)


def truth(A: Tensor) -> Any:
    return np.linalg.svd(A.double().cpu().numpy(), compute_uv=False)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", ODD)
def test_values_and_vectors(
    backend: str, device: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    A = on(device, np.stack([matrices.gaussian(*shape, seed) for seed in range(3)]), dtype)
    values, factors = sk.svdvals(A), sk.svd(A)
    assert values.device == factors.U.device == A.device
    for i in range(len(A)):
        check_values(values[i].cpu(), A[i].cpu())
        check_vectors(sk.SVD(*(x.cpu()[i] for x in factors)), A[i].cpu())


def test_layouts_batches_and_lists(backend: str, device: str) -> None:
    A = on(device, matrices.gaussian(37, 26))
    expected = sk.svdvals(A)
    for told, view in matrices.layouts(A).items():
        torch.testing.assert_close(sk.svdvals(view), expected, rtol=0, atol=1e-5, msg=told)
    ragged = [A, A.mT, A[:5], torch.stack([A, A]), A[:0]]
    for S, part in zip(sk.svdvals(ragged), ragged, strict=True):
        torch.testing.assert_close(S, sk.svdvals(part), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(9, 7), (40, 33), (150, 140), (300, 400)])
def test_nan_stays_in_its_matrix(backend: str, device: str, shape: tuple[int, int]) -> None:
    A = on(device, np.stack([matrices.gaussian(*shape, seed) for seed in range(4)]))
    clean = sk.svd(A)
    A[1, 3, 2], A[3, 0, 0] = float("nan"), float("inf")
    for found, expected in zip(sk.svd(A), clean, strict=True):
        assert bool(found[[1, 3]].isnan().all())
        torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=0, atol=0)


def test_summaries(backend: str, device: str) -> None:
    shapes = [(3, 20, 12), (40, 60), (130, 128), (8, 8)]
    batch = [on(device, matrices.rng(i).standard_normal(s)) for i, s in enumerate(shapes)]
    for found, A in zip(sk.spectral_summary(batch), batch, strict=True):
        expected = sk.spectral_summary(A.double().cpu().numpy())
        for name, ours, theirs in zip(found._fields, found, expected, strict=True):
            np.testing.assert_allclose(ours.cpu(), theirs, rtol=2e-5, err_msg=name)


def test_leading_triplets_are_those_of_the_cpu(backend: str, device: str) -> None:
    sigma = np.arange(1, 61) ** -1.0
    A = on(device, matrices.with_spectrum(200, 60, sigma))
    found = sk.rsvd(A, 8, generator=torch.Generator().manual_seed(5))
    cpu = sk.rsvd(A.cpu(), 8, generator=torch.Generator().manual_seed(5))
    np.testing.assert_allclose(found.S.cpu(), cpu.S, rtol=1e-5)
    np.testing.assert_allclose(
        (found.U.cpu().mT @ cpu.U).abs(), np.eye(8), atol=1e-3, err_msg="the same start"
    )


def test_alignments(backend: str, device: str) -> None:
    a, b = (sk.svd(on(device, matrices.gaussian(70, 50, seed))) for seed in (0, 1))
    c = sk.svd(on(device, matrices.gaussian(40, 70, 2)))
    expected = (a.U.mT.double() @ c.Vh.mT.double()).abs().diagonal()
    np.testing.assert_allclose(
        sk.alignment_diagonal(a.U, c.Vh).cpu(), expected[:50].cpu(), atol=1e-6
    )
    agreement = sk.singular_vector_agreement(a, b)
    left = (a.U * b.U).double().sum(-2).abs()
    right = (a.Vh * b.Vh).double().sum(-1).abs()
    np.testing.assert_allclose(agreement.cpu(), (left * right).cpu(), atol=1e-6)


def test_snapshot(backend: str, device: str) -> None:
    shapes = [(7, 5), (3, 33, 18), (1, 1), (200, 300), (0, 4)]
    batch = [on(device, matrices.rng(i).standard_normal(s)) for i, s in enumerate(shapes)]
    batch.append(batch[3].mT[::2].half())
    batch[0][2, 3] = float("nan")
    taken = snapshot_list(batch)
    expected = [statistics(A.double().cpu().numpy()).reshape(-1, 3) for A in batch]
    told = torch.stack([taken.max_abs, taken.frobenius_norm, taken.finite], dim=-1).cpu().numpy()
    told[np.isnan(np.concatenate(expected))] = np.nan
    np.testing.assert_allclose(told, np.concatenate(expected), rtol=1e-7)
    for copy, A in zip(taken.matrices, batch, strict=True):
        torch.testing.assert_close(copy, A.to(copy.dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize(
    ("p", "m", "n", "k"), [(1, 5, 3, 2), (37, 70, 50, 20), (300, 128, 257, 64)]
)
def test_usv_matmul_and_its_gradients(
    backend: str, device: str, p: int, m: int, n: int, k: int, dtype: torch.dtype, diagonal: bool
) -> None:
    torch.manual_seed(0)
    shapes = [(p, n), (m, k), (k,) if diagonal else (k, k), (k, n), (m,)]
    leaves = [(0.2 * torch.randn(s)).to(device, dtype).requires_grad_() for s in shapes]
    g = torch.randn(p, m).to(device, dtype)
    y = sk.usv_matmul(*leaves)
    found = (y, *torch.autograd.grad(y, leaves, g))
    wide = [x.detach().double().requires_grad_() for x in leaves]
    x, U, Sigma, Vh, bias = wide
    core = torch.diag_embed(Sigma) if diagonal else Sigma
    exact = x @ (U @ core @ Vh).mT + bias
    expected = (exact, *torch.autograd.grad(exact, wide, g.double()))
    eps = torch.finfo(dtype).eps
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        # Rounded once, after sums in float32 whose own rounding is far smaller.
        error = (ours - theirs).detach().abs().max() / theirs.detach().abs().max()
        assert float(error) <= eps + (1e-13 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", sorted(TRAJECTORIES))
@pytest.mark.parametrize("k", [None, 4])
def test_tracked_bounds_hold(backend: str, device: str, name: str, k: int | None) -> None:
    tracker = sk.SpectrumTracker(k, tolerance=1e-3)
    for A in TRAJECTORIES[name]():
        A = A.to(device, torch.float32)
        if k is not None and k > min(A.shape):
            return
        S = tracker.update(A).S.double().cpu().numpy()
        bounds = tracker.bounds.cpu().numpy()
        if not bool(A.isfinite().all()):
            assert np.isnan(S).all()
            continue
        sigma = truth(A)[: len(S)]
        assert (np.abs(S - sigma) <= bounds).all()
