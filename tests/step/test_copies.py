"""Copies and pickles of trackers, monitors and frames go on as what they are copies of."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.model.matrix import MatrixView
from spectral_monitor.model.rules import default_registry
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor, nn

import spectral_kernels as sk
from tests.support.device_steps import LateStreams, as_device
from tests.support.monitored import Net, due, update

watching = partial(SpectralMonitor, every=1)


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


def saved(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "torch.save": saved,
}
ways = pytest.mark.parametrize("way", WAYS)


def walk(seed: int, *shapes: tuple[int, int]) -> list[Tensor]:
    """Matrices that are near those of the seed before."""
    generator = torch.Generator().manual_seed(0)
    base = [torch.randn(shape, generator=generator) for shape in shapes]
    return [A + 1e-3 * seed * A.flip(0) for A in base]


@ways
@pytest.mark.parametrize("updates", [0, 1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"k": 4}, {"reuse_buffers": True}, {"k": 4, "reuse_buffers": True}], ids=str
)
def test_a_tracker_goes_on_bit_by_bit(way: str, updates: int, options: dict[str, Any]) -> None:
    tracker = sk.SpectrumTracker(**options, tolerance=1e-4)
    shapes = (30, 20), (16, 40), (30, 20)
    for seed in range(updates):
        tracker.update(walk(seed, *shapes))
    twin = WAYS[way](tracker)
    assert (twin.k, twin.tolerance, twin.reuse_buffers) == (
        tracker.k, tracker.tolerance, tracker.reuse_buffers)  # fmt: skip
    assert twin.bounds is None
    for seed in range(updates, updates + 3):
        for mine, its in zip(tracker.update(walk(seed, *shapes)), twin.update(walk(seed, *shapes)),
                             strict=True):  # fmt: skip
            assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))
        for name in ("bounds", "error_norms", "identities"):
            pairs = zip(getattr(tracker, name), getattr(twin, name), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        assert tracker.work == twin.work
    assert tracker.resolves == twin.resolves


def test_a_copied_tracker_writes_nowhere_else() -> None:
    """Its plan would have the addresses of the other's vectors."""
    tracker = sk.SpectrumTracker(reuse_buffers=True)
    A = torch.randn(20, 12)
    mine = tracker.update(A)
    kept = [x.clone() for x in mine]
    twin = copy.deepcopy(tracker)
    twin.update(torch.randn(20, 12))
    assert all(torch.equal(a, b) for a, b in zip(mine, kept, strict=True))


def assert_same(a: SpectralFrame, b: SpectralFrame) -> None:
    mine, its = ({n: x for n, x in f.to_dict().items() if n != "overhead"} for f in (a, b))
    np.testing.assert_equal(mine, its)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"method": "exact", "pairs": None},
    {"method": "randomized", "k": 3},
    {"k": 3, "reference": "previous"},
    {"watch": ["weights", "updates"], "include": "block.*", "heads": 2},
]


@ways
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_monitor_copied_with_its_model_watches_the_copy(
    way: str, options: dict[str, Any]
) -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1, **options)
    for seed in range(3):
        update(model, seed)
        watch.step()
    twin_model, twin = WAYS[way]((model, watch))
    assert twin_model is not model
    assert_same(twin.frame, watch.frame)
    for seed in range(3, 5):
        update(model, seed)
        update(twin_model, seed)
        assert_same(due(twin.step()), due(watch.step()))
    # Each looks at its own.
    with torch.no_grad():
        twin_model.block.linear1.weight.zero_()
    name = "block.linear1.weight"
    assert due(twin.step()).matrices[name].spectral_norm == 0
    assert due(watch.step()).matrices[name].spectral_norm > 0
    assert twin.matrices[0].read().data_ptr() != watch.matrices[0].read().data_ptr()


@ways
def test_a_monitor_alone_brings_its_model(way: str) -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1)
    watch.step()
    twin = WAYS[way](watch)
    with torch.no_grad():
        model.head.weight.zero_()
    assert due(watch.step()).matrices["head.weight"].spectral_norm == 0
    assert due(twin.step()).matrices["head.weight"].spectral_norm > 0
    # A copy that was never used can be copied again.
    assert WAYS[way](WAYS[way](watch)).frame.step == 1


@ways
def test_a_model_may_hold_its_monitor(way: str) -> None:
    model = Net()
    model.watch = SpectralMonitor(model, every=1)
    model.watch.step()
    twin = WAYS[way](model)
    with torch.no_grad():
        twin.head.weight.zero_()
    assert due(twin.watch.step()).matrices["head.weight"].spectral_norm == 0
    assert due(model.watch.step()).matrices["head.weight"].spectral_norm > 0


def test_a_shallow_copy_watches_the_same_model() -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1)
    watch.step()
    twin = copy.copy(watch)
    update(model, 1)
    assert_same(due(twin.step()), due(watch.step()))


@ways
def test_inside_a_wrapper_and_of_a_mapping(way: str) -> None:
    model = Net()
    wrapped = torch.compile(model, backend="eager")
    watch = SpectralMonitor(wrapped, every=1)
    twin_wrapped, twin = WAYS[way]((wrapped, watch)) if way == "deepcopy" else (None, None)
    if twin_wrapped is not None:
        with torch.no_grad():
            twin_wrapped.head.weight.zero_()
        assert due(twin.step()).matrices["head.weight"].spectral_norm == 0
    weights = {"a": torch.randn(6, 4), "b": torch.randn(4, 6)}
    watch = SpectralMonitor(weights, every=1)
    copied, twin = WAYS[way]((weights, watch))
    copied["a"] = torch.zeros(6, 4)
    assert due(twin.step()).matrices["a"].spectral_norm == 0
    assert due(watch.step()).matrices["a"].spectral_norm > 0


@ways
def test_with_a_recorder_there_is_an_error_that_says_what_to_do(way: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with pytest.raises(TypeError, match=r"the one writer of .* cannot be copied or pickled"):
        WAYS[way](recorder)
    model = Net()
    watch = SpectralMonitor(model, every=1, recorder=recorder)
    watch.step()
    with pytest.raises(TypeError, match=r"with a recorder cannot be copied .* state_dict\(\)"):
        WAYS[way](watch)
    watch.close()
    twin = WAYS[way](watch)
    update(model, 1)
    assert due(twin.step()).step == 1


def test_a_registry_is_copied_and_not_pickled() -> None:
    registry = default_registry()
    registry.register("head.*", lambda info: [MatrixView("mine")])
    watch = watching(Net(), registry=registry)
    twin = copy.deepcopy(watch)
    assert [m.kind for m in twin.matrices] == [m.kind for m in watch.matrices]
    assert "mine" in {m.kind for m in twin.matrices}
    other = copy.deepcopy(registry)
    other.register(nn.Linear, lambda info: [MatrixView("other")])
    assert [m.kind for m in watching(Net(), registry=registry).matrices] == [
        m.kind for m in watch.matrices
    ]
    with pytest.raises(TypeError, match="a MatrixRegistry holds functions and cannot be pickled"):
        pickle.dumps(watch)


@ways
@pytest.mark.parametrize("method", ["tracked", "exact", "randomized"])
def test_frames(way: str, method: Any) -> None:
    watch = watching(Net(), method=method, every=1)
    watch.step(loss=1.0)
    frame = due(watch.step(loss=0.5))
    assert_same(WAYS[way](frame), frame)
    assert WAYS[way](frame).overhead == frame.overhead


@ways
def test_frames_and_monitors_whose_numbers_are_on_their_way(way: str) -> None:
    model, streams = Net(), LateStreams()
    watch = as_device(SpectralMonitor(model, every=1), streams)
    watch.step()
    frame = due(watch.step())
    assert not frame.arrived
    twin_model, twin, copied = WAYS[way]((model, watch, frame))
    assert copied.arrived
    assert_same(copied, frame)
    update(model, 1)
    update(twin_model, 1)
    mine, its = due(watch.step()), due(twin.step())
    for name, row in mine.matrices.items():
        np.testing.assert_allclose(row.singular_values, its.matrices[name].singular_values,
                                   rtol=1e-5)  # fmt: skip


def test_a_copy_that_does_not_fit_its_model_says_so() -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1)
    watch.step()
    model.head = nn.Linear(12, 9)
    twin = copy.deepcopy(watch)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the matrices differ \(head.weight: \(7, 12\)"):
            twin.step()


def test_unknown_attributes_are_errors() -> None:
    watch = watching(Net())
    with pytest.raises(AttributeError, match="'SpectralMonitor' object has no attribute 'frmae'"):
        watch.frmae  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not hasattr(copy.deepcopy(watch), "frmae")


@ways
def test_traced_pairs_go_along(way: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    watch = watching(model, pairs=sk.trace(model, torch.randn(2, 4)))
    _, twin = WAYS[way]((model, watch))
    assert [pair.key for pair in twin.pairs] == [pair.key for pair in watch.pairs]
    assert_same(due(twin.step()), due(watch.step()))
