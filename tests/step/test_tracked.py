"""Method "tracked": every number within its bound, whatever training does to the weights."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.frame import SpectralFrame
from spectral_monitor.step.tracked_solver import UNSETTLED, TrackedSolver
from torch import Tensor, nn

from tests.support import matrices, tolerances
from tests.support.monitored import (
    Net,
    assert_same,
    assert_within_bounds,
    due,
    held_bytes,
    truth,
    update,
)


def works(frame: SpectralFrame) -> set[str]:
    return {row.work for row in frame.matrices.values()}


def test_training_is_followed_within_the_bounds(backend: str) -> None:
    torch.manual_seed(0)
    model = Net(24)
    watch = SpectralMonitor(model, every=1)
    seen: set[str] = set()
    for seed in range(40):
        update(model, seed)
        frame = due(watch.step())
        assert_within_bounds(frame, model)
        seen |= works(frame)
        for row in frame.matrices.values():
            assert row.method == "tracked"
            # 1e-3 is the tolerance, and rounding comes on top.
            most = tolerances.TRACKER_AND_ROUNDING * row.spectral_norm
            assert row.singular_value_bounds.max() <= most
            assert row.bounds["effective_rank"] < 0.02 * row.effective_rank
    assert {"kept", "rotated"} <= seen
    # Of 240 updates; the weights move most at the start.
    assert watch.resolves <= 8


def test_the_tolerance_is_the_callers() -> None:
    torch.manual_seed(0)
    model = Net()
    fine = SpectralMonitor(model, every=1, tolerance=1e-6)
    for seed in range(5):
        update(model, seed)
        frame = due(fine.step())
        assert_within_bounds(frame, model)
        for row in frame.matrices.values():
            assert row.singular_value_bounds.max() <= 1e-5 * row.spectral_norm


def test_jumps_are_solved_anew_and_counted(backend: str) -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1)
    watch.step()
    assert watch.resolves == 0
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(7, 12))
    frame = due(watch.step())
    assert_within_bounds(frame, model)
    assert frame.matrices["head.weight"].work == "solved"
    assert works(frame) == {"solved", "kept"}
    assert watch.resolves == 1


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def backward(model: nn.Module, seed: int) -> None:
    x = torch.randint(0, 7, (4, 3), generator=torch.Generator().manual_seed(seed))
    model.eval()
    nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()


def test_several_optimizer_steps_between_two_measurements() -> None:
    model = Net()
    optimizer = optimizer_of(model)
    watch = SpectralMonitor(model, every=5)
    measured = 0
    for step in range(16):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        frame = watch.step(step)
        if frame is not None:
            assert_within_bounds(frame, model)
            measured += 1
    assert measured == 4


def test_gradient_accumulation_leaves_everything_as_it_was() -> None:
    model = Net()
    optimizer = optimizer_of(model)
    watch = SpectralMonitor(model, every=1)
    before = due(watch.step())
    for seed in range(3):
        backward(model, seed)
        frame = due(watch.step())
        # The weights have not moved: the same vectors, and the same numbers to the last bit.
        assert works(frame) == {"kept"}
        assert_same(frame, before)
    optimizer.step()
    frame = due(watch.step())
    assert_within_bounds(frame, model)
    assert all(
        (row.singular_values != before.matrices[name].singular_values).any()
        for name, row in frame.matrices.items()
    )


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"]
)
def test_steps_inside_and_outside_of_modes_may_alternate(mode: Any, backend: str) -> None:
    torch.manual_seed(0)
    model = Net()
    plain, mixed = SpectralMonitor(model, every=1), SpectralMonitor(model, every=1)
    for seed in range(6):
        update(model, seed)
        expected = due(plain.step())
        if seed % 2:
            with mode():
                frame = due(mixed.step())
        else:
            frame = due(mixed.step())
        assert_same(frame, expected)
    # What a step inside left must not be tied to the mode: a state can be saved and loaded.
    SpectralMonitor(model, every=1).load_state_dict(mixed.state_dict())


def test_a_compiled_model_is_tracked_as_the_model_is() -> None:
    torch.manual_seed(0)
    model = Net()
    compiled = torch.compile(model, backend="aot_eager")
    direct, through = SpectralMonitor(model, every=1), SpectralMonitor(compiled, every=1)
    for seed in range(4):
        update(compiled, seed)
        frame = due(through.step())
        assert_same(frame, due(direct.step()))
        assert_within_bounds(frame, model)


def test_replaced_moved_and_converted_parameters() -> None:
    torch.manual_seed(0)
    model = Net()
    watch = SpectralMonitor(model, every=1)
    watch.step()
    expected = due(watch.step())
    # Other memory, same numbers.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    assert_same(due(watch.step()), expected)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert_same(due(watch.step()), expected)
    model.head.weight = nn.Parameter(model.head.weight.detach().mT.contiguous().mT)
    assert_same(due(watch.step()), expected, tolerance=1e-6)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        model.to(dtype)
        frame = due(watch.step())
        assert_within_bounds(frame, model)
        wide = np.float64 if dtype == torch.float64 else np.float32
        assert all(row.singular_values.dtype == wide for row in frame.matrices.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_may_move_to_a_gpu_and_back() -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1)
    watch.step()
    for device in ("cuda", "cpu"):
        model.to(device)
        frame = due(watch.step())
        for name, row in frame.matrices.items():
            expected = truth(model.get_parameter(name).cpu())["singular_values"]
            assert (np.abs(row.singular_values - expected) <= row.singular_value_bounds).all()


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    torch.manual_seed(0)
    model = Net(24)
    watch = SpectralMonitor(model, every=1)
    for seed in range(6):
        update(model, seed)
        watch.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "monitor": watch.state_dict()}, file)
    frames = []
    for seed in range(6, 16):
        update(model, seed)
        frames.append(due(watch.step()))
    # Vectors of its own in between must not matter.
    other = Net(24)
    resumed = SpectralMonitor(other, every=1)
    resumed.step()
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["monitor"])
    for seed, expected in zip(range(6, 16), frames, strict=True):
        update(other, seed)
        frame = due(resumed.step())
        assert_same(frame, expected)
        for name, row in frame.matrices.items():
            same = expected.matrices[name]
            assert (row.work, row.bounds) == (same.work, same.bounds)
    assert resumed.resolves == watch.resolves


def test_k_triplets_have_bounds_for_what_they_leave_open() -> None:
    generator = torch.Generator().manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(60, 40, generator=generator))
    V, _ = torch.linalg.qr(torch.randn(40, 40, generator=generator))
    # One that has fewer triplets than asked for is known as a whole.
    weights = {"few": torch.randn(6, 50, generator=generator)}
    weights |= {"A": (U * 0.7 ** torch.arange(40.0)) @ V.mT}
    watch = SpectralMonitor(weights, every=1, k=8)
    for _ in range(4):
        weights["A"] = weights["A"] + 1e-4 * torch.randn(60, 40, generator=generator)
        frame = due(watch.step())
        assert list(frame.matrices) == ["few", "A"]
        few, row = frame.matrices.values()
        assert len(few.singular_values) == 6
        assert few.bounds["effective_rank"] < 1e-2
        expected = truth(weights["A"])
        leading = expected.pop("singular_values")[:8]
        assert (np.abs(row.singular_values - leading) <= row.singular_value_bounds).all()
        for metric, value in expected.items():
            assert abs(getattr(row, metric) - value) <= row.bounds[metric], metric
    assert len(row.singular_values) == 8
    assert row.bounds["spectral_norm"] < 1e-2 * row.spectral_norm


def test_large_matrices_have_all_values_and_leading_vectors() -> None:
    torch.manual_seed(0)
    weights: dict[str, Tensor] = {"up": torch.randn(500, 390), "down": torch.randn(390, 500)}
    watch = SpectralMonitor(weights, every=1, pairs=[("up", "down")])
    for _ in range(2):
        weights = {name: A.add_(1e-4 * torch.randn(A.shape)) for name, A in weights.items()}
        frame = due(watch.step())
    for name, row in frame.matrices.items():
        expected = truth(weights[name])
        error = np.abs(row.singular_values - expected.pop("singular_values"))
        assert len(error) == 390
        # Known to rounding, not to the tolerance.
        assert (error <= row.singular_value_bounds).all()
        assert row.singular_value_bounds.max() < 1e-5 * row.spectral_norm
        assert row.work not in ("", "not finite")
    assert len(frame.alignment["up", "down"]) == 100
    assert len(frame.agreement["up"]) == 100
    assert frame.agreement["up"][0] > 0.9
    weights["up"][3, 4] = math.inf
    bad = due(watch.step()).matrices["up"]
    assert not bad.finite
    assert bad.work == "not finite"
    assert np.isnan(bad.singular_values).all()


def test_large_matrices_whose_vectors_nobody_needs_are_solved_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(400, 400, generator=generator) for name in ("first", "second", "alone")
    }
    watch = SpectralMonitor(weights, every=1, pairs=[("first", "second")], reference=None)
    plain = SpectralMonitor(weights, every=1, pairs=None, reference=None)
    for _ in range(2):
        paired, frame = due(watch.step()), due(plain.step())
    assert works(frame) == {paired.matrices["alone"].work} == {"solved"}
    assert "iteration" in paired.matrices["first"].work
    for name, row in frame.matrices.items():
        error = np.abs(row.singular_values - truth(weights[name])["singular_values"])
        assert (error <= row.singular_value_bounds).all()
    assert plain.resolves == 0
    # Nothing is kept of them, and it is known before the first step.
    kept = SpectralMonitor(weights, every=1, pairs=None, reference=None).memory().kept["solver"]
    assert kept == plain.memory().kept["solver"]
    assert kept["alone"] == watch.memory().kept["solver"]["alone"] == 0
    # The same pairs go on as if nothing had been.
    same = SpectralMonitor(weights, every=1, pairs=[("first", "second")], reference=None)
    same.load_state_dict(watch.state_dict())
    for A in weights.values():
        A += 1e-4 * torch.randn(400, 400, generator=generator)
    resumed, expected = due(same.step()), due(watch.step())
    assert_same(resumed, expected)
    assert works(resumed) == works(expected)
    # A monitor with other pairs takes the state, and starts its own vectors.
    plain.load_state_dict(watch.state_dict())
    assert works(due(plain.step())) == {"solved"}
    watch.load_state_dict(plain.state_dict())
    again = due(watch.step())
    assert again.matrices["first"].work.startswith("solved")
    assert len(again.alignment["first", "second"]) == 100
    weights["alone"][3, 4] = math.nan
    bad = due(plain.step()).matrices
    assert (bad["alone"].work, bad["alone"].finite) == ("not finite", False)
    assert works(due(plain.step())) == {"not finite", "solved"}


def test_a_leading_direction_that_the_vectors_miss_is_told() -> None:
    U, V = matrices.orthonormal(400, 390), matrices.orthonormal(390, 390, 1)
    sigma = 0.97 ** np.arange(390.0)
    smooth, grown = (
        torch.from_numpy((U * s) @ V.T).float() for s in (sigma, np.r_[sigma[:-1], 3.0])
    )
    weights = {"A": smooth}
    watch = SpectralMonitor(weights, every=1, pairs=None)
    works_of = []
    # Two steps and the one when it was made: fresh columns come with every third.
    for A in (smooth, smooth, smooth, grown, grown, grown, grown):
        weights["A"] = A
        row = due(watch.step()).matrices["A"]
        assert abs(row.singular_values[0] - (1.0 if A is smooth else 3.0)) < 1e-5
        works_of.append(row.work)
    assert not any(UNSETTLED in work for work in works_of[:3])
    assert works_of[3].endswith(UNSETTLED)
    assert not works_of[-1].endswith(UNSETTLED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_what_the_solver_keeps_is_told_in_advance(dtype: torch.dtype) -> None:
    weights = {"a": torch.randn(60, 128).to(dtype), "b": torch.randn(200, 90).to(dtype)}
    watch = SpectralMonitor(weights, every=1, pairs=None, reference=None)
    solver = watch._measurement.solver
    assert isinstance(solver, TrackedSolver)
    told = solver.memory()
    for _ in range(3):
        watch.step()
    held = held_bytes(solver, {A.untyped_storage().data_ptr() for A in weights.values()})
    # A few numbers for each matrix come on top: names, drift, summaries.
    assert sum(told.values()) <= held <= 1.03 * sum(told.values())
    assert told.keys() == weights.keys()


@pytest.mark.parametrize("k", [None, 6])
def test_identities_are_those_of_the_tracker(k: int | None, backend: str) -> None:
    """Two values cross while their vectors stand still: their numbers change places."""
    U, V = (torch.linalg.qr(torch.randn(n, 8)).Q for n in (12, 10))
    sigma = torch.linspace(8.0, 1.0, 8)
    weights = {"a": (U * sigma) @ V.mT, "b": torch.randn(9, 7)}
    watch = SpectralMonitor(weights, every=1, k=k, pairs=None)
    assert due(watch.step()).identities["a"].tolist()[:3] == [0, 1, 2]
    for t in (0.3, 0.6, 1.0):
        moved = sigma.clone()
        moved[1:3] = torch.tensor([7.0 - 1.2 * t, 6.0 + t])
        weights["a"].copy_((U * moved) @ V.mT)
        frame = due(watch.step())
    assert frame.identities["a"].tolist()[:3] == [0, 2, 1]
    assert frame.identities["b"].tolist() == list(range(7 if k is None else 6))
    # What a frame says does not change with the next step.
    weights["a"].copy_((U * sigma) @ V.mT)
    assert due(watch.step()).identities["a"].tolist()[:3] == [0, 1, 2]
    assert frame.identities["a"].tolist()[:3] == [0, 2, 1]


def test_a_state_from_where_other_sides_are_tracked_whole_starts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As between a GPU, which tracks longer sides, and the CPU."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 390, bias=False), nn.Linear(390, 8, bias=False))
    here = SpectralMonitor(model, every=1)
    monkeypatch.setattr("spectral_monitor.step.tracked_solver._on_cuda", lambda matrices: True)
    there = SpectralMonitor(model, every=1)
    assert UNSETTLED not in works(due(there.step()))
    here.step()
    for watch, state in ((here, there.state_dict()), (there, here.state_dict())):
        watch.load_state_dict(state)
        frame = due(watch.step())
        assert {entry.removesuffix(UNSETTLED) for entry in works(frame)} == {"solved"}
        assert_within_bounds(frame, model)
