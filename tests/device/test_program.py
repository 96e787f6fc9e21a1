"""The program of a GPU step reads nothing on its way, and a step is three launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.bounds import estimate_from_leading, leading_value_bounds
from spectral_monitor.step.program import StepProgram
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spectral_kernels.entry.results import SVD
from spectral_kernels.snapshot.op import PreparedSnapshot
from tests.support.device_steps import LateStreams, as_device
from tests.support.dispatched import Apart
from tests.support.monitored import Net, due, update


class Results:
    """A tracker that gives results of the right shapes, always in the same memory."""

    def __init__(self, k: int | None) -> None:
        self.k = k
        self._svds: list[SVD] = []

    def update(self, matrices: list[Tensor], vectors: list[int]) -> list[SVD]:
        if not self._svds:
            for A in matrices:
                m, n = A.shape
                r = min(m, n, self.k or m)
                self._svds.append(SVD(A.new_zeros(r, m).mT, A.new_zeros(r), A.new_zeros(r, n)))
            S = [svd.S for svd in self._svds]
            self.bounds = [x.double() for x in S]
            self.identities = [x.long() for x in S]
            self.error_norms = self.frobenius_norms = [x.new_zeros(()).double() for x in S]
            self.codes = [x.new_zeros(()).long() for x in S]
            self.lost = [x.new_zeros(()).bool() for x in S]
        return self._svds

    def prepared(self) -> None:
        return None


@pytest.mark.parametrize(
    "options",
    [{}, {"reference": "previous"}, {"k": 3}, {"pairs": None, "reference": None}],
    ids=["init", "previous", "k", "values alone"],
)
def test_no_number_is_read_and_nothing_crosses_between_devices(options: dict[str, Any]) -> None:
    """Tensors on the meta device have no numbers: what reads one is an error."""
    watch = as_device(SpectralMonitor(Net(), **{"every": 1, **options}))
    for _ in range(2):
        watch.step()
    prepared = watch._measurement.device._prepared
    assert prepared is not None
    expected = prepared.program.layout
    solver: Any = watch._measurement.solver
    solver.trackers = [(members, Results(tracker.k)) for members, tracker in solver.trackers]
    matrices = [torch.empty(m.shape, device="meta") for m in (*watch.matrices, *watch.parts)]
    program = StepProgram(watch._measurement.asked, matrices, snapshot=True)
    scalar = torch.zeros((), device="meta")
    # Preparing is done once, and may copy.
    program.read([scalar])
    program.compute()
    with Apart():
        program.read([scalar])
        program.compute()
    assert program.block.device.type == "meta"
    assert program.layout == expected


def test_the_check_catches_what_it_is_for() -> None:
    x = torch.zeros(3, device="meta")
    for read in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x.tolist(), x.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            read()
    with Apart():
        x.add_(1.0)
        for across in (lambda: x.copy_(torch.zeros(3)), lambda: torch.zeros(3).to("meta")):
            with pytest.raises(AssertionError, match=r"on \['cpu', 'meta'\]"):
                across()


class Launches(TorchDispatchMode):
    """The operations that Python issues."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        # Views and metadata launch nothing.
        if not func.is_view and "detach" not in name:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Quiet(LateStreams):
    """A recorded program launches nothing by itself."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self._launches = launches

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        return lambda: _as_one(self._launches, "graph", work)


def _as_one(launches: Launches, name: str, work: Callable[[], Any]) -> Any:
    before = list(launches.seen)
    result = work()
    launches.seen[:] = [*before, name]
    return result


@pytest.mark.parametrize("options", [{}, {"reference": "previous"}, {"k": 3}], ids=str)
def test_a_step_is_three_launches(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches()
    run = PreparedSnapshot.run
    monkeypatch.setattr(
        PreparedSnapshot, "run", lambda self: _as_one(launches, "snapshot", lambda: run(self))
    )
    model, streams = Net(), Quiet(launches)
    watch = as_device(SpectralMonitor(model, **{"every": 1, **options}), streams)
    loss = torch.tensor(1.0)
    for seed in range(8):
        update(model, seed)
        streams.catch_up()
        # The numbers of a frame are made on the host when it is looked at.
        watch._frame = None
        launches.seen.clear()
        with launches:
            frame = due(watch.step(**({"loss": loss} if seed == 7 else {})))
        if seed > 3:
            scalars = ["aten.copy_.default"] * (seed == 7)
            assert launches.seen == [*scalars, "snapshot", "graph", "aten.copy_.default"]
            assert not frame.arrived
    assert streams.waits == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_of_leading_values_are_those_of_the_rows(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    A = torch.randn(6, 30, 20, dtype=dtype) * torch.logspace(-20, 15, 6, dtype=dtype)[:, None, None]
    A[2] = 0.0
    A[3, :, 4:] = 0.0
    S = torch.linalg.svdvals(A.double())[:, :5].to(dtype)
    norms = torch.linalg.matrix_norm(A.double())
    told = 1e-3 * S.double()
    told[4:] = 10.0 * norms[4:, None]
    norms[5], S[5] = float("nan"), float("nan")
    found = leading_value_bounds(S, norms, told, (30, 20)).numpy()
    for i in range(5):
        row = estimate_from_leading(
            S[i].numpy(), float(norms[i]), (30, 20), (0.0, 3.0), told[i].numpy()
        )
        assert found[i] == pytest.approx(row.value_bounds, rel=1e-12, abs=0.0)
    assert (found[5] != found[5]).all()


def test_clusters_have_the_bounds_of_the_rows() -> None:
    model = Net()
    watch = as_device(SpectralMonitor(model, every=1, k=3))
    for seed in range(3):
        update(model, seed)
        frame = due(watch.step())
        rows = frame.matrices.values()
        expected = np.concatenate([row.singular_value_bounds for row in rows])
        clusters = watch._measurement.comparisons.clusters._prepared
        assert clusters is not None
        found = clusters.bounds.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-12)
