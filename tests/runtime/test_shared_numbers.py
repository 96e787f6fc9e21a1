"""Numbers that stand in Python and in csrc: they are the same ones."""

from __future__ import annotations

import pytest
import torch

from spectral_kernels.entry.results import METRICS, Snapshot
from spectral_kernels.runtime.limits import DIRECT_SIDE
from spectral_kernels.runtime.numerics import DTYPE_CODES
from spectral_kernels.tracking.leading import state as leading
from spectral_kernels.tracking.results import NOT_FINITE_CODE
from spectral_kernels.tracking.whole import state as whole

_C = pytest.importorskip("spectral_kernels._C")


def test_numbers_of_the_compiled_module() -> None:
    assert {
        "direct_side": DIRECT_SIDE,
        "summary_fields": len(METRICS),
        "snapshot_fields": len(Snapshot._fields) - 1,
        "rotations": whole.ROTATIONS,
        "solved": whole.SOLVED,
        "not_finite": NOT_FINITE_CODE,
        "warm_iterations": leading.WARM_ITERATIONS,
        "cold_iterations": leading.COLD_ITERATIONS,
        "settled": leading.SETTLED,
        "unsettled": leading.UNSETTLED,
        "progress": leading.PROGRESS,
    } == _C.NUMBERS


def test_codes_of_work_are_their_names() -> None:
    assert whole.WORK[whole.SOLVED] == "solved"
    assert len(whole.WORK) == whole.ROTATIONS + 2
    assert len(leading.WORK) == leading.WARM_ITERATIONS + 2


@pytest.mark.parametrize("dtype", list(DTYPE_CODES))
def test_compiled_kernels_take_sides_up_to_the_limit(dtype: torch.dtype) -> None:
    code = DTYPE_CODES[dtype]
    for side, taken in ((DIRECT_SIDE, True), (DIRECT_SIDE + 1, False)):
        assert _C.track_supported(code, side, 1000) == taken
        assert _C.svdvals_supported(code, 1000, side) == (taken or dtype != torch.float64)
        assert _C.svd_supported(code, side, side) == (taken and dtype != torch.float64)
