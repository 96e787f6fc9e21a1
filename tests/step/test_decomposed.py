"""SpectralMonitor on decomposed layers: one matrix each, as if it were kept whole."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.decomposed.layers.linear import DecomposedLinear
from spectral_monitor.figures.overviews import plot_run
from spectral_monitor.figures.report import write_report
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.final_agreement import agreement_with_final
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.frame import SpectralFrame
from torch import nn

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS
from tests.support import tolerances
from tests.support.decomposed_models import (
    LAYERS,
    assert_within_bounds,
    decomposed,
    layer,
    product,
    weight_of,
)
from tests.support.monitored import METHODS, Net, due, held_bytes, update


def follow(twin: nn.Module, model: nn.Module) -> None:
    """Give a dense model the weights of a decomposed one."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, DecomposedLayer):
                target = twin.get_parameter(weight_of(name))
                target.copy_(product(model, name).reshape(target.shape))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [None, 0.4])
def test_training_is_followed_within_the_bounds(method: Any, rank: Any, backend: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(24), rank)
    watch = SpectralMonitor(model, every=1, method=method)
    assert [matrix.name for matrix in watch.matrices] == [weight_of(name) for name in LAYERS]
    for seed in range(25):
        update(model, seed)
        frame = due(watch.step())
        assert_within_bounds(frame, model)
        for name, row in frame.matrices.items():
            assert len(row.singular_values) == layer(model, name).rank
            if method == "tracked":
                # The tolerance of the tracker, and rounding.
                most = tolerances.TRACKER_AND_ROUNDING * row.spectral_norm
                assert row.singular_value_bounds.max() <= most
            if method == "exact":
                # 8 eps of the solver; of the core twice 8 for its bases and 1 for its rounding.
                assert row.singular_value_bounds.max() <= 3e-6 * row.spectral_norm


@pytest.mark.parametrize("options", [{"k": 3}, {"k": 3, "method": "randomized"}])
def test_a_few_leading_triplets(options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(24), 0.5)
    watch = SpectralMonitor(model, **{"every": 1, **options})
    for seed in range(8):
        update(model, seed)
        frame = due(watch.step())
        assert_within_bounds(frame, model)
        assert all(len(row.singular_values) == 3 for row in frame.matrices.values())


def assert_same_meetings(frame: SpectralFrame, other: SpectralFrame, tolerance: float) -> None:
    """Alignment and agreement of vectors that both frames can tell apart."""
    compared = 0

    def check(mine: Any, theirs: Any, *names: str) -> None:
        nonlocal compared
        count = min(len(mine), len(theirs))
        clear = np.ones(count, dtype=bool)
        for name in names:
            flags = frame.identifiable[name][:count] & other.identifiable[name][:count]
            clear[: len(flags)] &= flags
            clear[len(flags) :] = False
        compared += int(clear.sum())
        np.testing.assert_allclose(mine[:count][clear], theirs[:count][clear], atol=tolerance)

    assert frame.alignment.keys() == other.alignment.keys()
    for pair, diagonal in frame.alignment.items():
        check(diagonal, other.alignment[pair], *(p.partition("[")[0] for p in pair))
    for name, diagonal in frame.agreement.items():
        check(diagonal, other.agreement[name], name)
    assert compared


@pytest.mark.parametrize("rank", [None, 0.4])
@pytest.mark.parametrize("reference", ["init", "previous"])
def test_meetings_are_those_of_the_recomposed_model(rank: Any, reference: Any) -> None:
    torch.manual_seed(0)
    dense = Net(16).double()
    model = decomposed(dense, rank)
    follow(dense, model)
    # In float64 nothing but the path differs.
    watch = SpectralMonitor(model, every=1, method="exact", reference=reference)
    other = SpectralMonitor(dense, every=1, method="exact", reference=reference)
    assert other.explain().count("->") == watch.explain().count("->")
    for seed in range(6):
        update(model, seed)
        follow(dense, model)
        frame, expected = due(watch.step()), due(other.step())
        if seed or reference == "init":
            assert_same_meetings(frame, expected, 1e-6)
        for name, row in frame.matrices.items():
            twin = expected.matrices[name]
            assert row.kind == twin.kind
            for metric in METRICS:
                # What a product of low rank has below its k values is rounding.
                a, b = getattr(row, metric), getattr(twin, metric)
                assert a == pytest.approx(b, rel=1e-9, abs=1e-9), (name, metric)


def test_tracked_vectors_meet_as_exact_ones(backend: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(16), 0.5)
    tracked = SpectralMonitor(model, every=1, tolerance=1e-6)
    exact = SpectralMonitor(model, every=1, method="exact")
    kept: list[Any] = []
    for seed in range(12):
        update(model, seed)
        frame, expected = due(tracked.step()), due(exact.step())
        # Of vectors 1e-2 apart relative to sigma_1 a bound of 1e-6 leaves 1e-4.
        for name, values in frame.agreement.items():
            S = expected.matrices[name].singular_values
            gaps = np.abs(np.diff(S, append=0.0)) > 1e-2 * S[0]
            clear = gaps & np.concatenate([[True], gaps[:-1]])
            np.testing.assert_allclose(values[clear], expected.agreement[name][clear], atol=1e-3)
        assert tracked._measurement.own._program is not None
        kept.append([x.svd.Vh for x in tracked._measurement.own._program.solved])
        assert all(row.finite for row in frame.matrices.values())
    # What follows is prepared once for vectors that stay where they are.
    places = {Vh.data_ptr() for svds in kept for Vh in svds}
    assert len(places) == len(LAYERS) + len(tracked.parts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 0.5).to(dtype)
    watch = SpectralMonitor(model, every=1)
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * torch.randn_like(p)
        frame = due(watch.step())
        assert_within_bounds(frame, model)
        kind = np.float64 if dtype == torch.float64 else np.float32
        assert all(row.singular_values.dtype == kind for row in frame.matrices.values())


def test_all_values_of_a_low_rank_have_vectors_but_one_that_may_be_zero() -> None:
    model = nn.Sequential(DecomposedLinear(8, 6, rank=3))
    head = layer(model, "0")
    with torch.no_grad():
        head.Sigma.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    watch = SpectralMonitor(model, every=1, method="exact", pairs=None)
    # Not as if the spectrum went on after k leading values.
    assert due(watch.step()).identifiable["0.weight"].tolist() == [True, True, True]
    with torch.no_grad():
        head.Sigma[-1, -1] = 1e-12
    watch = SpectralMonitor(model, every=1, method="exact", pairs=None)
    assert due(watch.step()).identifiable["0.weight"].tolist() == [True, True, False]


def test_chance_knows_the_rank() -> None:
    model = nn.Sequential(DecomposedLinear(40, 30, rank=4))
    watch = SpectralMonitor(model, every=1, watch=("weights", "updates"))
    chance = due(watch.step()).chance
    assert chance.overlap["0.weight[update]"] == pytest.approx((4 / 30, 4 / 40))


@pytest.mark.parametrize("rank", [None, 0.25])
@pytest.mark.parametrize("options", [{}, {"k": 8}, {"method": "exact"}, {"method": "randomized"}])
def test_the_memory_that_is_told(rank: Any, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(96, 256), nn.Linear(256, 96), nn.Linear(96, 96)).requires_grad_(
        False
    )
    for i in range(3):
        model[i] = DecomposedLinear.from_linear(model[i], rank)  # type: ignore[arg-type]
    watch = SpectralMonitor(model, watch=("weights", "updates"), **{"every": 1, **options})
    told = watch.memory()
    factors = sum(p.nbytes for name, p in model.named_parameters() if not name.endswith("bias"))
    assert sum(told.weights.values()) == factors
    for _ in range(3):
        for p in model.parameters():
            p.add_(1e-4 * torch.randn(p.shape))
        watch.step()
    watch._frame = None
    held = held_bytes(watch, {p.untyped_storage().data_ptr() for p in model.parameters()})
    # Held: 1.003 to 1.022 times. A few numbers for each value come on top.
    assert told.total <= held <= 1.05 * told.total
    assert watch.memory().total == told.total


@pytest.mark.parametrize("method", METHODS)
def test_resuming_gives_the_same_numbers(method: Any) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 0.5)
    options: dict[str, Any] = {"method": method, "watch": ("weights", "updates")}
    watch = SpectralMonitor(model, **{"every": 1, **options})
    for seed in range(4):
        update(model, seed)
        watch.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "monitor": watch.state_dict()}, file)
    frames = []
    for seed in range(4, 7):
        update(model, seed)
        frames.append(due(watch.step()).to_dict())
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = decomposed(Net(12), 0.5)
    resumed = SpectralMonitor(other, **{"every": 1, **options})
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["monitor"])
    for seed, expected in zip(range(4, 7), frames, strict=True):
        update(other, seed)
        frame = due(resumed.step()).to_dict()
        del frame["overhead"], expected["overhead"]
        assert repr(frame) == repr(expected)


@pytest.mark.parametrize("method", METHODS)
def test_vectors_of_the_whole_sides_are_saved(method: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 0.5)
    watch = SpectralMonitor(
        model, every=1, method=method, reference="final", recorder=Recorder(tmp_path / "run")
    )
    for seed in range(5):
        update(model, seed)
        watch.step(seed)
    watch.close()
    run = agreement_with_final(tmp_path / "run")
    for name in LAYERS:
        diagonal = run.agreement[weight_of(name)]
        assert diagonal.shape == (5, layer(model, name).rank)
        np.testing.assert_allclose(diagonal[-1], 1.0, atol=5e-3)
    # A folder is a reference for the same layers, kept dense.
    dense = Net(12)
    follow(dense, model)
    later = SpectralMonitor(
        dense, every=1, method="exact", reference=tmp_path / "run", include="head.*"
    )
    S = due(later.step()).matrices["head.weight"].singular_values
    agreement = due(later.frame).agreement["head.weight"]
    assert agreement[0] > 0.99 or S[0] - S[1] < 0.05 * S[0]


def test_svds_of_the_dense_weights_are_a_reference() -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 0.5)
    given = {weight_of(name): sk.svd(product(model, name).float()) for name in LAYERS}
    watch = SpectralMonitor(model, every=1, method="exact", reference=given)
    for name, values in due(watch.step()).agreement.items():
        assert len(values) == layer(model, name.removesuffix(".weight")).rank
        assert values[0] > 0.999


def test_a_run_is_recorded_and_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = decomposed(Net(12), 5)
    watch = SpectralMonitor(model, every=1, recorder=Recorder(tmp_path / "run", precision="full"))
    frames = []
    for seed in range(4):
        update(model, seed)
        if seed == 2:
            model.head.Sigma.data[0, 0] = math.nan  # type: ignore[union-attr]
        frames.append(due(watch.step(seed, train_loss=1.0)))
    watch.close()
    run = load_run(tmp_path / "run")
    for name in run.matrices:
        assert run.singular_values[name].shape == (4, layer(model, name).rank)
        for t, frame in enumerate(frames):
            row = frame.matrices[name]
            np.testing.assert_array_equal(run.singular_values[name][t], row.singular_values)
    # A normalised rank is a share of the short side, not of k.
    share = frames[0].matrices["block.linear1.weight"].normalized_effective_rank
    assert share == pytest.approx(frames[0].matrices["block.linear1.weight"].effective_rank / 12)
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "block.self_attn.in_proj_weight" in page
    assert len(plot_run(run).axes) >= 4
