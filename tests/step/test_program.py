"""The step of a monitor on a CPU: recorded, it is one native call, and the same as by Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import nn

from spectral_kernels.entry.results import SVD
from tests.support.device_steps import numbers
from tests.support.monitored import Net, due, update

pytest.importorskip("spectral_kernels._C")


def disturb(model: nn.Module, step: int) -> None:
    """NaN at step 3, until step 4; a jump at step 6."""
    weight = model.head.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        if step == 3:
            weight[1, 2] = float("nan")
        if step == 4:
            weight[1, 2] = 0.5
        if step == 6:
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    "options",
    [{}, {"reference": "previous"}, {"reference": None}, {"pairs": None, "reference": None},
     {"watch": ("weights", "updates")}],
    ids=["init", "previous", "no reference", "values alone", "updates"],
)  # fmt: skip
def test_the_recorded_step_is_one_native_call_and_the_same(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Net()
    recorded = SpectralMonitor(model, **{"every": 1, **options})
    replayed = SpectralMonitor(model, **{"every": 1, **options})
    solver: Any = replayed._measurement.solver
    solver.prepared = lambda: None
    for step in range(9):
        update(model, step)
        disturb(model, step)
        frame, expected = due(recorded.step()), due(replayed.step())
        np.testing.assert_equal(numbers(frame), numbers(expected))
        program = recorded._measurement.own._program
        assert program is not None
        assert program._program is not None
        assert program._program.stages == 1
        if step == 6:
            assert frame.matrices["head.weight"].work == "solved"
    assert recorded.resolves == replayed.resolves > 0
    state, expected_state = recorded.state_dict(), replayed.state_dict()
    np.testing.assert_equal(plain(state), plain(expected_state))


def plain(state: Any) -> Any:
    """A state with arrays in place of tensors."""
    if isinstance(state, torch.Tensor):
        return state.numpy()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items() if key != "cadence"}
    return [plain(x) for x in state] if isinstance(state, (list, tuple)) else state


def test_parameters_that_move_and_cold_starts_are_recorded_anew() -> None:
    model = Net()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    watch = SpectralMonitor(model, every=1)
    for step in range(6):
        if step == 2:
            with torch.no_grad():
                model.head.weight.copy_(torch.randn(model.head.weight.shape))
        if step == 4:
            model.head.weight = nn.Parameter(2.0 * model.head.weight.detach())
        row = due(watch.step()).matrices["head.weight"]
        assert row.finite == (step >= 2)
        # There is nothing that its agreement could be with.
        assert np.isnan(due(watch.frame).agreement["head.weight"]).all()
        if step >= 2:
            S = torch.linalg.svdvals(model.head.weight.detach().double()).numpy()
            assert (abs(row.singular_values - S) <= row.singular_value_bounds).all()
    assert watch.resolves == 0


def test_a_reference_of_another_dtype_is_compared_in_that_of_the_weights() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(7, 12), "b": torch.randn(5, 9).double()}
    given = {
        name: SVD(*torch.linalg.svd(A.double(), full_matrices=False)) for name, A in weights.items()
    }
    watch = SpectralMonitor(weights, every=1, pairs=None, reference=given)
    for _ in range(3):
        frame = due(watch.step())
        for name, A in weights.items():
            assert frame.agreement[name].dtype == A.numpy().dtype
            assert frame.matrices[name].singular_values.dtype == A.numpy().dtype
            np.testing.assert_allclose(frame.agreement[name], 1.0, atol=1e-5)
