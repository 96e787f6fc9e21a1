"""Snapshots: packed copies and their statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_kernels.entry.results import Snapshot
from spectral_kernels.runtime import numerics
from spectral_kernels.snapshot import truth
from spectral_kernels.snapshot.op import PreparedSnapshot, snapshot_list
from tests.support import matrices


def check(tensors: list[torch.Tensor], snap: Snapshot | None = None) -> None:
    snap = snapshot_list(tensors) if snap is None else snap
    rows = []
    for A, copy in zip(tensors, snap.matrices, strict=True):
        assert copy.dtype == numerics.result_dtype(A.dtype)
        assert copy.is_contiguous()
        assert not copy.requires_grad
        assert torch.equal(copy, A.detach().to(copy.dtype))
        rows.append(truth.statistics(A.detach().double().numpy()).reshape(-1, 3))
    want = np.concatenate(rows)
    got = np.stack([x.numpy() for x in snap[1:]], axis=-1)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 48), (3, 200)], ids=str)
def test_layouts(shape: tuple[int, int], dtype: torch.dtype, every_isa: str) -> None:
    check(list(matrices.layouts(torch.randn(shape).to(dtype)).values()))


@pytest.mark.parametrize("name", matrices.SCALED)
def test_scales(name: str, every_isa: str) -> None:
    A = torch.from_numpy(matrices.SCALED[name]())
    check([A, A.float()])


def test_scale_of_float64(every_isa: str) -> None:
    """Squares that leave the range of float64 on either side."""
    A = torch.randn(20, 30, dtype=torch.float64)
    check([A * 1e200, A * 1e-200, A * 1e-310])


def test_ragged_batched_and_empty(every_isa: str) -> None:
    weight = torch.nn.Parameter(torch.randn(6, 12, 3, 3))
    check(
        [
            torch.randn(5, 4),
            torch.randn(2, 3, 8, 8),
            torch.randn(4, 2, 9).transpose(0, 1),
            weight.flatten(1),
            weight[:, :, 1, 1],
            torch.zeros(3, 3),
            torch.empty(0, 4),
            torch.empty(2, 0, 4),
            torch.empty(0, 4, 4),
            torch.randn(30, 20).half(),
        ]
    )


def test_nothing() -> None:
    snap = snapshot_list([])
    assert snap.matrices == []
    assert [x.shape for x in snap[1:]] == [(0,)] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", matrices.DTYPES, ids=str)
def test_bad_entries_are_seen_wherever_they_are(
    bad: float, dtype: torch.dtype, every_isa: str
) -> None:
    clean = torch.randn(3, 33)
    tensors = []
    for position in range(99):
        A = clean.clone()
        A.view(-1)[position] = bad
        tensors.append(A.to(dtype))
    snap = snapshot_list([*tensors, clean.to(dtype)])
    assert snap.finite.tolist() == [0.0] * 99 + [1.0]
    assert not snap.max_abs[:99].isfinite().any()
    assert not snap.frobenius_norm[:99].isfinite().any()
    assert snap.max_abs[99].isfinite()
    assert snap.frobenius_norm[99].isfinite()
    for A, copy in zip(tensors, snap.matrices, strict=False):
        assert torch.equal(copy.isnan(), A.isnan())


def test_a_copy_is_a_copy(backend: str) -> None:
    A = torch.randn(4, 4)
    snap = snapshot_list([A])
    A.zero_()
    assert (snap.matrices[0] != 0).all()


def test_prepared_snapshots_follow_their_matrices(every_isa: str) -> None:
    tensors = [
        torch.randn(5, 4),
        torch.randn(40, 33).mT,
        torch.randn(4, 2, 9).transpose(0, 1),
        torch.randn(2, 3, 4, 5).transpose(1, 2)[:, :, :2],
        torch.randn(6, 7).bfloat16(),
        torch.randn(3, 50, dtype=torch.float64),
        torch.empty(2, 0, 4),
    ]
    prepared = PreparedSnapshot(tensors)
    first = prepared.run()
    check(tensors, first)
    places = [x.data_ptr() for x in (*first.matrices, *first[1:])]
    for A in tensors:
        A.mul_(-3)
    tensors[4][2, 3] = torch.inf
    second = prepared.run()
    check(tensors, second)
    assert [x.data_ptr() for x in (*second.matrices, *second[1:])] == places
    assert second.finite.tolist() == [*[1] * 12, 0, 1, 1, 1]


def test_prepared_snapshots_know_their_matrices(backend: str) -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 6))
    prepared = PreparedSnapshot([parameter[:2], parameter.mT])
    assert prepared.fits([parameter[:2], parameter.mT])
    assert not prepared.fits([parameter[:2], parameter])
    assert not prepared.fits([parameter[2:], parameter.mT])
    assert not prepared.fits([parameter[:2]])
    assert not prepared.fits([parameter[:2], parameter.mT.clone()])
    assert not prepared.fits([parameter[:2].view(torch.int32), parameter.mT])
    assert not prepared.run().matrices[0].requires_grad
