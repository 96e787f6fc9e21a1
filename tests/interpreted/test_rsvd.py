"""Subspace iteration on the kernels where tiles, splits and scales change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_kernels.rsvd import torch_backend, triton_launch, truth
from spectral_kernels.rsvd.normals import Sketch, start_block
from spectral_kernels.rsvd.op import rsvd_list
from spectral_kernels.rsvd.triton_launch import Batch
from spectral_kernels.runtime import dispatch
from tests.support import matrices

SEED = 12345


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def orthonormality(Q: torch.Tensor) -> float:
    eye = torch.eye(Q.shape[-1], dtype=torch.float64)
    return float((Q.double().mT @ Q.double() - eye).abs().max())


def test_the_kernels_run() -> None:
    assert dispatch.backend("rsvd", "cpu").__name__ == "spectral_kernels.rsvd.triton_backend"


@pytest.mark.parametrize("shape", [(17, 40), (130, 600), (600, 70)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("given", [0, 3])
def test_the_product_with_the_random_block(
    shape: tuple[int, int], transposed: bool, given: int
) -> None:
    """Beyond one tile of rows, of columns and one part of the depth; given columns first."""
    A = torch.randn(2, *(shape[::-1] if transposed else shape))
    A = A.mT if transposed else A
    width = min(70, *shape)
    start = torch.randn(2, shape[1], given)
    largest = torch.zeros(2, dtype=torch.int32)
    batch = Batch.of([A], [4])
    Y = triton_launch.product(batch, start, largest, True, width, seed=SEED, random=True)
    omega = start_block(A, start, width, SEED, 4).double()
    want = A.double() @ omega
    assert float((Y.double().sum(1) - want).abs().max()) < 2e-6 * float(want.abs().max())
    assert torch.equal(largest.view(torch.float32), A.abs().amax(dim=(1, 2)))
    # The depth of these is split: the launcher says so.
    assert Y.shape[1] == (2 if shape[1] == 600 else 1)


@pytest.mark.parametrize("exponent", [-100, 0, 100])
def test_scales_are_found_on_the_way(exponent: int) -> None:
    """The first product overflows or vanishes where max|a| is extreme, and is made again."""
    A = torch.ldexp(torch.randn(3, 40, 30), torch.tensor(exponent))
    A[1] = 0
    largest = torch.zeros(3, dtype=torch.int32)
    Y = triton_launch.product(
        Batch.of([A], [0]), torch.empty(3, 30, 0), largest, True, 8, seed=SEED, random=True
    ).sum(1)
    want = A.double() @ start_block(A, torch.empty(3, 30, 0), 8, SEED, 0).double()
    assert bool((Y[1] == 0).all())
    ratio = Y[0, 0, 0].double() / want[0, 0, 0]
    assert 0.5 <= float(Y[0].abs().max()) < 2**10 if exponent else abs(float(ratio) - 1) < 1e-5
    np.testing.assert_allclose(
        Y[0].double() / ratio, want[0], rtol=1e-4, atol=1e-5 * want[0].abs().max()
    )


@pytest.mark.parametrize(("rows", "width"), [(16, 16), (100, 5), (300, 40), (200, 70), (130, 128)])
@pytest.mark.parametrize("condition", [1.0, 1e5, 1e12])
def test_orthonormal_whatever_the_condition(rows: int, width: int, condition: float) -> None:
    sigma = np.logspace(0, -np.log10(condition), width)
    Y = torch.from_numpy(matrices.with_spectrum(rows, width, sigma)).float()
    parts = torch.stack((0.25 * Y, 0.75 * Y))[None]
    Q, R = triton_launch.orthonormalise(parts, 2, SEED)
    assert orthonormality(Q[0]) < 4e-7
    assert float((Q.double() @ R - Y.double()).abs().max()) < 1e-6


def test_columns_that_hold_nothing_are_filled() -> None:
    """Zero, equal and dependent columns; a matrix of NaN does not stop the other."""
    Y = torch.randn(2, 1, 60, 9)
    Y[0, 0, :, 0] = 0
    Y[0, 0, :, 4] = Y[0, 0, :, 3]
    Y[0, 0, :, 8] = Y[0, 0, :, 1] - 2 * Y[0, 0, :, 2]
    Y[1] = float("nan")
    Q, R = triton_launch.orthonormalise(Y, 2, SEED)
    assert orthonormality(Q[0]) < 4e-7
    assert float((Q[0].double() @ R[0] - Y[0, 0].double()).abs().max()) < 2e-6
    assert bool(R[1].isfinite().all())
    once, _ = triton_launch.orthonormalise(Y, 1, SEED)
    # The negative control: after one round the filled columns are what they are.
    assert orthonormality(once[0]) > 1e-2


@pytest.mark.parametrize("k", [30, 70, 125])
def test_widths_up_to_what_the_kernels_take_and_beyond(k: int) -> None:
    A = torch.from_numpy(matrices.gaussian(160, 150)).float()
    (found,) = rsvd_list([A], [k], power_iters=1, generator=generator())
    start = start_block(A, torch.empty(150, 0), k + 8, int(torch.randint(
        2**63 - 1, (), generator=generator())), 0)  # fmt: skip
    want = truth.rsvd(A.numpy(), start.numpy(), k, 1)
    np.testing.assert_allclose(found.S, want.S, rtol=2e-5)


def test_lists_share_launches_and_random_numbers_do_not_depend_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = [torch.randn(40, 30), torch.randn(2, 40, 30), torch.randn(40, 30), torch.randn(9, 40)]
    launched: list[int] = []
    product = triton_launch.product

    def counted(batch: Batch, *arguments: object, **options: object) -> torch.Tensor:
        launched.append(len(batch))
        return product(batch, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(triton_launch, "product", counted)
    found = rsvd_list(tensors, [4] * 4, power_iters=0, generator=generator())
    assert launched == [2, 2, 2, 2, 1, 1]
    empty = [A.new_empty(*A.shape[:-2], A.shape[-1], 0) for A in tensors]
    seed = int(torch.randint(2**63 - 1, (), generator=generator()))
    widths = [min(12, *A.shape[-2:]) for A in tensors]
    sketches = list(map(Sketch, tensors, empty, [4] * 4, widths, range(4)))
    want = torch_backend.rsvd(sketches, seed, 0)
    for x, y in zip(found, want, strict=True):
        torch.testing.assert_close(x.S, y.S, rtol=1e-5, atol=1e-5)
