"""What launchers ask of Triton where sizes are one or large: kernels are not launched here."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from spectral_kernels.factored import triton_backend as decomposed
from spectral_kernels.products import triton_backend as products
from spectral_kernels.rsvd import triton_backend as rsvd
from spectral_kernels.rsvd import triton_launch
from spectral_kernels.rsvd.normals import Sketch
from spectral_kernels.rsvd.triton_launch import Batch
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.triton import host
from spectral_kernels.tracking.leading import triton_backend as leading
from spectral_kernels.tracking.leading import triton_launch as leading_launch
from spectral_kernels.tracking.leading.state import Block, Schedule
from spectral_kernels.tracking.whole import triton_backend as tracking
from spectral_kernels.tracking.whole.state import State
from tests.support import triton_resources
from tests.support.triton_launches import taken_down

pytestmark = pytest.mark.skipif(
    host.interpreting(), reason="interpreted kernels have no specialisations"
)


def _rsvd() -> None:
    A = torch.randn(1, 1)
    for given in (0, 1):
        rsvd.rsvd([Sketch(A, A.new_ones(1, given), 1, 1, 0)], 1, 1)


def _leading() -> None:
    block = Block(torch.ones(1, 1, 1), torch.zeros(1, 2, dtype=torch.int64), [False])
    leading.prepare([torch.ones(1, 1, 1)], [block], [1], Schedule(0, 1), 1e-3).run()


def _tracking() -> None:
    state = State.cold(1, 1, torch.float64, torch.device("cpu"))
    tracking.prepare([torch.ones(1, 1, 1)], [state], 1e-3).run()


def _decomposed() -> None:
    with mock.patch.object(dispatch, "forced", return_value="triton"):
        for dtype in (torch.bfloat16, torch.float32):
            one = torch.ones(1, 1, dtype=dtype)
            decomposed.usv_matmul(one, one, one, one, one[0])
            decomposed.usv_backward(one, one, one, one, one, [True] * 5)


@pytest.mark.parametrize(
    "use",
    [lambda: products.gram(torch.ones(1, 1)), _rsvd, _leading, _tracking, _decomposed],
    ids=["gram", "rsvd", "leading", "tracking", "decomposed"],
)
def test_sizes_of_one_compile(use: Callable[[], object]) -> None:
    """Triton makes constants of them, which have no methods of tensors."""
    with taken_down() as launches:
        use()
    variants = {repr(launch.variant): launch.variant for launch in launches}
    assert any(value == 1 for v in variants.values() for value in v.constants.values())
    for variant in variants.values():
        triton_resources.compile_for(variant, 90)


def test_grids_of_tall_wide_and_many_matrices_have_room() -> None:
    """Only the first axis of a grid goes beyond 65,535."""
    tall = torch.empty(1, 1).expand(9_000_000, 1)
    largest = torch.zeros(1, dtype=torch.int32)
    with taken_down() as launches:
        products.gram(tall)
        for A in (tall, tall.mT):
            batch = Batch.of([A], [0])
            for transposed in (False, True):
                depth = A.shape[-2 if transposed else -1]
                triton_launch.product(
                    batch, torch.empty(1, depth, 1), largest, True, 1, transposed=transposed
                )
        triton_launch.apply(tall[None, None], torch.empty(1, 1, 1), fill=True)
        leading_launch.refresh(tall[None], torch.zeros(1, dtype=torch.int64), 1, 1)
        needed = torch.ones(1, dtype=torch.bool)
        leading_launch.leftover(
            Batch.of([tall], [0]), tall[None], torch.empty(1, 1, 1, 1), needed, largest
        )
        many = torch.empty(70_000, 1, 1, dtype=torch.bfloat16)
        with mock.patch.object(dispatch, "forced", return_value="triton"):
            decomposed.usv_matmul(many, many, many, many, None)
    assert max(launch.grid[0] for launch in launches) > 65_535
    for grid, variant in launches:
        assert max((*grid[1:], 1)) <= 65_535, variant.name
