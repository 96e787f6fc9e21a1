"""The monitor's GPU step on the Triton kernels: within its bounds, and without reading a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import tolerances
from tests.support.device_steps import LateStreams, as_device
from tests.support.monitored import Net, assert_within_bounds, due, jolt


@pytest.fixture(autouse=True)
def _no_python_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers hear of lost matrices by themselves where their code runs; a replay has none."""
    monkeypatch.setattr(
        "spectral_kernels.tracking.flags.LateFlags.heard",
        lambda flags: [[] for _ in flags._counts],
    )


def test_steps_are_within_their_bounds_and_jumps_are_solved_later() -> None:
    torch.manual_seed(0)
    model, streams = Net(6), LateStreams()
    watch = as_device(SpectralMonitor(model, every=1), streams)
    works: list[str] = []
    for seed in range(5):
        jolt(model, seed)
        if seed == 2:
            with torch.no_grad():
                model.head.weight.copy_(torch.randn_like(model.head.weight))
        frame = due(watch.step())
        assert frame._late is not None
        assert_within_bounds(frame, model)
        works.append(frame.matrices["head.weight"].work)
    assert streams.log.count("record") == 1
    assert "solved" not in works[:3]
    assert works[2].startswith("rotated")
    assert works[3] == "solved"
    assert watch.resolves == 1
    solved = frame.matrices["head.weight"]
    most = tolerances.TRACKER_AND_ROUNDING * solved.spectral_norm
    assert solved.singular_value_bounds.max() <= most
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    frame = due(watch.step())
    assert frame.matrices["head.weight"].work == "not finite"
    assert sum(row.finite for row in frame.matrices.values()) == len(frame.matrices) - 1


class Reads(TorchDispatchMode):
    """What a GPU would have to be waited for: numbers read, and lists of numbers sent."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(
            word in name for word in ("_local_scalar", "nonzero", "equal", "masked_select", "lift")
        ):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"k": 2}], ids=["whole", "k"])
def test_the_program_reads_no_number_once_it_is_warm(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 24, bias=False), nn.Linear(24, 5, bias=False))
    watch = as_device(SpectralMonitor(model, reference="previous", **{"every": 1, **options}))
    for seed in range(3):
        jolt(model, seed)
        frame = due(watch.step())
        for name, row in frame.matrices.items():
            exact = torch.linalg.svdvals(model.get_parameter(name).detach().double()).numpy()
            error = np.abs(row.singular_values - exact[: len(row.singular_values)])
            assert (error <= row.singular_value_bounds).all()
    prepared = watch._measurement.device._prepared
    assert prepared is not None
    derived = prepared.program._derived
    with Reads() as reads:
        prepared.program.read([])
        prepared.program.compute()
    assert reads.seen == []
    # Nothing was prepared anew: the results are where they were.
    assert prepared.program._derived is derived
