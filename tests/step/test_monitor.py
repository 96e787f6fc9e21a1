"""SpectralMonitor on models that train."""

from __future__ import annotations

import copy
import gc
import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor import monitor as monitor_file
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.step.bounds import entropy_bound, estimate_from_leading
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor, nn

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS
from tests.support.monitored import METHODS, Net, assert_same, due, held_bytes, truth, update


def test_every_number_of_the_exact_method_is_within_its_bound(backend: str) -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1, method="exact")
    update(model, 0)
    frame = due(watch.step(loss=0.5))
    assert frame.scalars == {"loss": 0.5}
    assert len(frame.matrices) == 6
    for name, row in frame.matrices.items():
        expected = truth(model.get_parameter(name))
        bounds = row.bounds
        error = np.abs(row.singular_values - expected.pop("singular_values")).max()
        assert error <= bounds["singular_values"] < 1e-4 * row.spectral_norm
        for metric, value in expected.items():
            assert abs(getattr(row, metric) - value) <= bounds[metric] < 1e-3 * value, metric
        assert row.numerical_rank == min(row.shape)
        assert row.normalized_effective_rank == row.effective_rank / min(row.shape)


def test_agreement_with_the_initial_weights() -> None:
    model = Net()
    before = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    before = {name: value.copy() for name, value in before.items()}
    # Vectors are as near as the bound of the values over the gaps; the default's suffices to 3e-3.
    watch = SpectralMonitor(model, every=1, tolerance=1e-5)
    first = due(watch.step(0))
    for values in first.agreement.values():
        np.testing.assert_allclose(values, 1.0, atol=1e-5)
    for seed in range(20):
        update(model, seed)
    frame = due(watch.step(20))
    name = "block.linear1.weight"
    U, _, Vh = np.linalg.svd(before[name], full_matrices=False)
    after = model.get_parameter(name).detach().double().numpy()
    U2, _, Vh2 = np.linalg.svd(after, full_matrices=False)
    expected = np.abs((U * U2).sum(0) * (Vh * Vh2).sum(1))
    assert expected.min() < 0.99  # the weights did move
    np.testing.assert_allclose(frame.agreement[name], expected, atol=1e-3)


def test_agreement_with_the_previous_step_and_with_given_svds() -> None:
    model = Net()
    previous = SpectralMonitor(model, every=1, reference="previous", pairs=None)
    first = due(previous.step())
    assert all(np.isnan(values).all() for values in first.agreement.values())
    given = {"head.weight": sk.svd(model.head.weight.detach())}
    fixed = SpectralMonitor(model, every=1, reference=given, pairs=None)
    svds = sk.svd([p.detach() for p in model.parameters() if p.dim() == 2])
    listed = SpectralMonitor(model, every=1, reference=svds, pairs=None)
    for seed in range(3):
        update(model, seed)
        frame = due(previous.step())
    assert list(due(fixed.step()).agreement) == ["head.weight"]
    np.testing.assert_allclose(
        due(fixed.step()).agreement["head.weight"], due(listed.step()).agreement["head.weight"],
        atol=1e-5,
    )  # fmt: skip
    # One step moves the weights less than three.
    assert frame.agreement["head.weight"].sum() > due(listed.step()).agreement["head.weight"].sum()


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("final", "expected a Recorder to save them"),
        ("nowhere", "expected 'init', 'previous', 'final', the folder of a run, SVDs or None"),
        ({"x": sk.svd(torch.eye(2))}, "no matrix is called 'x'"),
        ({"head.weight": sk.svd(torch.eye(2))}, r"U \(2, 2\).*the matrix is \(7, 12\)"),
        ([sk.svd(torch.eye(2))], "1 SVDs for 6 matrices"),
    ],
)
def test_wrong_references(reference: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpectralMonitor(Net(), every=1, reference=reference)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "svd"}, "method: expected one of tracked, exact, randomized, got 'svd'"),
        ({"method": "exact", "tolerance": 0.1}, "tolerance: an option of method 'tracked'"),
        ({"tolerance": 0.0}, "tolerance is 0.0; expected a positive finite number"),
        ({"every": 0}, "every: expected a whole number of at least 1, got 0"),
        ({"k": 0}, "k: expected"),
        ({"k": 2.5}, "k: expected"),
        ({"include": "nothing*"}, "fits no parameter"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpectralMonitor(Net(), **{"every": 1, **options})


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module or a mapping"):
        SpectralMonitor([torch.eye(2)], every=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="recorder: expected a Recorder"):
        SpectralMonitor(Net(), every=1, recorder=3)


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_marks_its_own_rows_and_nothing_else(method: Any, backend: str) -> None:
    bad = Net()
    good = copy.deepcopy(bad)
    monitors = [SpectralMonitor(model, every=1, method=method) for model in (bad, good)]
    for seed in range(3):
        for model, watch in zip((bad, good), monitors, strict=True):
            update(model, seed)
            watch.step()
    name = "block.linear1.weight"
    healthy = bad.get_parameter(name)[2, 1].item()
    with torch.no_grad():
        bad.get_parameter(name)[2, 1] = math.nan
    frame, expected = (due(watch.step()) for watch in monitors)
    row = frame.matrices[name]
    assert not row.finite
    assert np.isnan(row.singular_values).all()
    assert all(math.isnan(getattr(row, metric)) for metric in METRICS)
    assert all(math.isnan(row.bounds[metric]) for metric in METRICS)
    touched = [pair for pair in frame.alignment if name in pair]
    assert len(touched) == 2
    assert all(np.isnan(frame.alignment[pair]).all() for pair in touched)
    assert np.isnan(frame.agreement[name]).all()
    assert all(other.finite for other in frame.matrices.values() if other is not row)
    assert_same(without(frame, name), without(expected, name))
    assert math.isfinite(frame.mean("effective_rank"))
    # When the layer recovers, so do its rows.
    with torch.no_grad():
        bad.get_parameter(name)[2, 1] = healthy
    for _ in range(2):
        again, expected = (due(watch.step()) for watch in monitors)
        assert again.matrices[name].finite
        # The randomized method has missed one update of this matrix's warm start: 1.2e-5 measured.
        assert_same(again, expected, tolerance=5e-5)
        assert_same(without(again, name), without(expected, name))


def without(frame: SpectralFrame, name: str) -> SpectralFrame:
    return replace(
        frame,
        matrices={key: row for key, row in frame.matrices.items() if key != name},
        alignment={pair: v for pair, v in frame.alignment.items() if name not in pair},
        agreement={key: v for key, v in frame.agreement.items() if key != name},
    )


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a monitor could leave on a model."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        attributes = vars(module)
        state[name] = sorted(attributes)
        hooks = {key: len(value) for key, value in attributes.items() if "hooks" in key and value}
        state[f"{name} hooks"] = hooks
    for name, parameter in model.named_parameters():
        state[f"{name} attributes"] = sorted(vars(parameter))
        state[f"{name} hooks"] = parameter._backward_hooks
        state[f"{name} version"] = parameter._version
        state[f"{name} pointer"] = parameter.data_ptr()
    return state


@pytest.mark.parametrize("method", METHODS)
def test_the_model_gains_nothing(method: Any) -> None:
    model = Net()
    update(model, 0)
    before, values = everything(model), copy.deepcopy(model.state_dict())
    watch = SpectralMonitor(model, every=1, method=method)
    for step in range(3):
        watch.step(step)
    watch.explain()
    watch.state_dict()
    watch.close()
    assert everything(model) == before
    assert all(torch.equal(values[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_compiled_models_have_their_own_names() -> None:
    model = Net()
    expected = due(SpectralMonitor(model, every=1).step())
    whole = torch.compile(model, backend="eager")
    watch = SpectralMonitor(whole, every=1)
    assert_same(due(watch.step()), expected)
    before = due(watch.frame).matrices["head.weight"].spectral_norm
    update(whole, 0)
    moved = due(watch.step()).matrices["head.weight"].spectral_norm
    assert moved != before
    fresh = due(SpectralMonitor(model, every=1).step()).matrices["head.weight"].spectral_norm
    # One monitor has followed the weights there, the other has not.
    assert moved == pytest.approx(fresh, rel=1e-6)
    nested = copy.deepcopy(model)
    nested.head = torch.compile(nested.head, backend="eager")
    names = [matrix.name for matrix in SpectralMonitor(nested, every=1).matrices]
    assert "head.weight" in names
    assert not any("_orig_mod" in name for name in names)
    assert ("block.linear2.weight", "head.weight") in due(
        SpectralMonitor(nested, every=1).step()
    ).alignment


def test_live_parameters_are_read() -> None:
    model = Net()
    watch = SpectralMonitor(model, every=1, pairs=None, reference=None)

    def norm() -> float:
        return due(watch.step()).matrices["head.weight"].frobenius_norm

    one = torch.zeros_like(model.head.weight)
    one[0, 0] = 1.0
    model.head.weight.data = 2 * one
    assert norm() == pytest.approx(2)
    model.head.weight = nn.Parameter(3 * one)
    assert norm() == pytest.approx(3)
    model.load_state_dict({**model.state_dict(), "head.weight": 4 * one})
    assert norm() == pytest.approx(4)
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert norm() == pytest.approx(8)
    model.bfloat16()
    assert norm() == pytest.approx(8)
    model.double()
    assert norm() == pytest.approx(8)
    model.head.weight.data = torch.zeros(3, 3)
    with pytest.warns(UserWarning, match=r"head.weight: its shape was \(7, 12\).*\(3, 3\) now"):
        assert math.isnan(norm())


def test_a_removed_parameter_is_a_row_that_says_so() -> None:
    weights = {"a": torch.randn(3, 3)}
    watch = SpectralMonitor(weights, every=1)
    weights["a"] = torch.eye(3)
    assert due(watch.step()).matrices["a"].stable_rank == pytest.approx(3)
    del weights["a"]
    with pytest.warns(UserWarning, match="a: the parameter is gone"):
        row = due(watch.step()).matrices["a"]
    assert (row.finite, row.reason[:21]) == (False, "the parameter is gone")


def test_dtypes_may_be_mixed() -> None:
    model = Net()
    model.head.double()
    model.embed.half()
    watch = SpectralMonitor(model, every=1)
    frame = due(watch.step())
    assert frame.matrices["head.weight"].singular_values.dtype == np.float64
    assert frame.matrices["embed.weight"].singular_values.dtype == np.float32
    U = np.linalg.svd(model.block.linear2.weight.detach().double().numpy(), False)[0]
    Vh = np.linalg.svd(model.head.weight.detach().numpy(), False)[2]
    np.testing.assert_allclose(
        frame.alignment["block.linear2.weight", "head.weight"],
        np.abs(np.diagonal(U.T @ Vh.T)), atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_autocast_grad_and_inference_modes_change_nothing(method: Any, backend: str) -> None:
    model = Net()
    make = lambda: SpectralMonitor(model, every=1, method=method, reference="previous")  # noqa: E731
    plain, cast, inference = make(), make(), make()
    for _ in range(2):
        expected = due(plain.step())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(due(cast.step()), expected)
        with torch.inference_mode():
            assert_same(due(inference.step()), expected)
    assert torch.is_grad_enabled()


def test_every_and_the_step_counter() -> None:
    watch = SpectralMonitor({"a": torch.eye(3)}, every=3)
    assert [watch.step() is not None for _ in range(7)] == [True, False, False] * 2 + [True]
    assert due(watch.frame).step == 6
    assert watch.step(10) is None
    assert due(watch.step(12)).step == 12
    assert watch.step() is None  # 13


def test_scalars() -> None:
    watch = SpectralMonitor({"a": torch.eye(3)}, every=2)
    x = torch.tensor([2.0], requires_grad=True)
    assert due(watch.step(loss=(x * 3).sum(), ok=True)).scalars == {"loss": 6.0, "ok": 1.0}
    # Not due: not even read.
    assert watch.step(loss=torch.zeros(3)) is None
    with pytest.raises(ValueError, match=r"scalar 'loss': expected one number, got shape \(3,\)"):
        watch.step(loss=torch.zeros(3))
    with pytest.raises(ValueError, match="reports its own overhead"):
        watch.step(4, overhead=1.0)


def test_paused() -> None:
    watch = SpectralMonitor({"a": torch.eye(3)}, every=1)
    watch.step()
    with watch.paused():
        assert watch.step() is None
        with watch.paused():
            assert watch.step() is None
        assert watch.step() is None
    assert due(watch.step()).step == 4


def test_overhead_is_the_monitors_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Entered, frame ready, written: for three frames.
    clock = iter([0.0, 1.0, 1.0, 10.0, 12.0, 13.0, 20.0, 22.0, 22.0])
    watch = SpectralMonitor({"a": torch.eye(3)}, every=1)
    monkeypatch.setattr(monitor_file.time, "perf_counter", lambda: next(clock))
    assert math.isnan(due(watch.step()).overhead)
    assert due(watch.step()).overhead == pytest.approx(2 / 11)
    # The second that writing took counts too.
    assert due(watch.step()).overhead == pytest.approx(3 / 10)


class Log:
    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((values, step))


def test_loggers_by_duck_type() -> None:
    log, full = Log(), Log()

    watch = SpectralMonitor(Net(), every=1, recorder=[log, sk.LoggerSink(full, per_layer=True)])
    frame = due(watch.step(5, loss=1.5))
    ((values, step),) = log.calls
    assert step == 5
    assert values["loss"] == 1.5
    linear = [row.stable_rank for row in frame.matrices.values() if row.kind == "linear"]
    assert values["spectral/stable_rank/linear"] == pytest.approx(np.mean(linear))
    assert values["spectral/stable_rank/all"] == pytest.approx(frame.mean("stable_rank"))
    assert not any("head.weight" in key for key in values)
    ((everything, _),) = full.calls
    assert everything["spectral/stable_rank/head.weight"] == pytest.approx(
        frame.matrices["head.weight"].stable_rank
    )
    assert everything.keys() > values.keys()
    watch.close()
    watch.step(6)
    assert len(log.calls) == 1


@pytest.mark.parametrize("reference", ["init", "previous"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_monitor_goes_on_the_same(method: Any, reference: Any) -> None:
    options: dict[str, Any] = {"method": method, "reference": reference, "k": 5, "seed": 3}
    model = Net()
    watch = SpectralMonitor(model, **{"every": 1, **options})
    for seed in range(4):
        update(model, seed)
        watch.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "monitor": watch.state_dict()}, file)
    frames = []
    for seed in range(4, 7):
        update(model, seed)
        frames.append(due(watch.step()))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = Net()
    resumed = SpectralMonitor(
        other, **{"every": 1, **options}
    )  # its own "init" is that of other weights
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["monitor"])
    for seed, expected in zip(range(4, 7), frames, strict=True):
        update(other, seed)
        frame = due(resumed.step())
        assert frame.step == expected.step
        assert_same(frame, expected)


def test_states_that_do_not_fit() -> None:
    state = SpectralMonitor(Net(), every=1).state_dict()
    with pytest.raises(ValueError, match=r"embed.weight: \(7, 12\) in the state, \(7, 8\) here"):
        SpectralMonitor(Net(8), every=1).load_state_dict(state)
    with pytest.raises(ValueError, match="method 'tracked', this monitor has 'randomized'"):
        SpectralMonitor(Net(), every=1, method="randomized").load_state_dict(state)
    with pytest.raises(ValueError, match="reference is 'init', this monitor's is 'previous'"):
        SpectralMonitor(Net(), every=1, reference="previous").load_state_dict(state)
    with pytest.raises(ValueError, match="version"):
        SpectralMonitor(Net(), every=1).load_state_dict({})
    small = SpectralMonitor(Net(), every=1, method="randomized", k=2)
    small.step()
    with pytest.raises(ValueError, match=r"warm start of 'embed.weight' is \(12, 2\)"):
        SpectralMonitor(Net(), every=1, method="randomized", k=3).load_state_dict(
            small.state_dict()
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reference", ["init", "previous"])
def test_the_monitor_holds_few_times_the_weights(method: Any, reference: Any) -> None:
    class Demo(nn.Module):
        """Shapes of the modular addition demo."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(60, 128)
            self.attn = nn.MultiheadAttention(128, 4)
            self.up, self.down = nn.Linear(128, 512), nn.Linear(512, 128)
            self.head = nn.Linear(128, 60)

    model = Demo()
    watch = SpectralMonitor(model, every=1, method=method, reference=reference)
    for _ in range(3):
        watch.step()
    gc.collect()
    weights = sum(matrix.read().nbytes for matrix in watch.matrices)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = held_bytes(vars(watch), own)
    assert held > 0.1 * weights  # the references are there, so the walk does see tensors
    # The tracker has its vectors and, so that a step allocates nothing, the last results too, of
    # the heads of the attention as well.
    assert held <= (4 if method == "tracked" else 2) * weights


@pytest.mark.parametrize("kind", ["flat", "decaying", "low rank"])
def test_randomized_bounds_hold(kind: str, backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(60, 40, generator=generator)
    if kind != "flat":
        U, S, Vh = torch.linalg.svd(A, full_matrices=False)
        S = 0.6 ** torch.arange(40.0) if kind == "decaying" else torch.arange(40.0).lt(6) * 1.0
        A = (U * S) @ Vh
    weights = {"A": A}
    watch = SpectralMonitor(weights, every=1, method="randomized", k=12)
    for _ in range(4):  # warm starts after the first
        weights["A"] = weights["A"] + 0.001 * A.norm() / 40 * torch.randn(
            60, 40, generator=generator
        )
        row = due(watch.step()).matrices["A"]
        expected, bounds = truth(weights["A"]), row.bounds
        leading = expected.pop("singular_values")[:12]
        assert np.abs(row.singular_values - leading).max() <= bounds["singular_values"]
        for metric, value in expected.items():
            assert abs(getattr(row, metric) - value) <= bounds[metric], metric
        assert row.numerical_rank <= 40 <= row.numerical_rank + bounds["numerical_rank"]
    if kind == "decaying":
        # Not vacuous where the leading values hold nearly all there is.
        assert bounds["spectral_norm"] < 1e-2 * row.spectral_norm
        assert bounds["effective_rank"] < 0.5


def test_randomized_with_all_values_agrees_with_exact() -> None:
    model = Net()
    exact = due(SpectralMonitor(model, every=1).step())
    watch = SpectralMonitor(model, every=1, method="randomized", k=64)
    assert_same(due(watch.step()), exact, tolerance=2e-2)
    row = due(watch.frame).matrices["head.weight"]
    assert row.bounds["effective_rank"] < 1e-2


def test_randomized_zero_matrix_and_extreme_scales() -> None:
    A = torch.randn(20, 12)
    weights = {"zero": torch.zeros(20, 12), "tiny": 1e-30 * A, "huge": 1e30 * A, "one": A}
    frame = due(SpectralMonitor(weights, every=1, method="randomized", k=4).step())
    zero = frame.matrices["zero"]
    assert zero.finite
    assert all(getattr(zero, metric) == 0 for metric in METRICS)
    for name in ("tiny", "huge"):
        row = frame.matrices[name]
        np.testing.assert_allclose(row.stable_rank, frame.matrices["one"].stable_rank, rtol=0.1)
        assert math.isfinite(row.bounds["effective_rank"])


def test_randomized_is_reproducible_by_its_seed() -> None:
    model = Net()
    frames = [
        due(SpectralMonitor(model, every=1, method="randomized", k=3, seed=seed).step())
        for seed in (1, 1, 2)
    ]
    assert_same(frames[0], frames[1])
    assert any(
        (frames[0].matrices[name].singular_values != row.singular_values).any()
        for name, row in frames[2].matrices.items()
    )


def test_leading_values_of_every_spectrum_with_the_same_data_are_covered() -> None:
    """Random spectra above the computed values: what was not computed may be anything."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        r, k = 10, int(generator.integers(1, 10))
        sigma = np.sort(generator.exponential(size=r) ** generator.integers(1, 4))[::-1]
        # Computed values of a projection: below the true ones.
        s = np.sort(sigma[:k] * (1 - 0.1 * generator.random(k)))[::-1]
        norm = float(np.sqrt((sigma**2).sum()))
        low, high = sk.bounds_from_leading_values(torch.from_numpy(s.copy()), norm, r)
        estimate = estimate_from_leading(s, norm, (r, r), (float(low), float(high)))
        p = sigma / sigma.sum()
        values = dict(zip(METRICS, estimate.values, strict=True))
        bounds = dict(zip(METRICS, estimate.bounds, strict=True))
        for metric, value in (
            ("effective_rank", float(-(p * np.log(p)).sum())),
            ("nuclear_norm", float(sigma.sum())),
            ("spectral_norm", float(sigma[0])),
            ("stable_rank", norm**2 / sigma[0] ** 2),
        ):
            assert abs(values[metric] - value) <= bounds[metric] * (1 + 1e-9), metric


def test_the_entropy_bound_covers_random_perturbations() -> None:
    generator = np.random.default_rng(0)
    for _ in range(500):
        r = int(generator.integers(2, 30))
        p, q = generator.dirichlet(np.full(r, 0.3)) + 1e-300, generator.dirichlet(np.ones(r))
        q = (1 - 10.0 ** -generator.integers(0, 6)) * (p - q) + q
        distance = 0.5 * np.abs(p - q).sum()
        change = abs((p * np.log(p)).sum() - (q * np.log(q)).sum())
        assert change <= entropy_bound(distance, r) + 1e-12


def test_the_frame_as_dict_and_as_table() -> None:
    pandas = pytest.importorskip("pandas")
    watch = SpectralMonitor(Net(), every=1)
    frame = due(watch.step(3, loss=0.5))
    content = frame.to_dict()
    assert content["matrices"]["head.weight"]["shape"] == [7, 12]
    assert len(content["alignment"]["block.linear1.weight -> block.linear2.weight"]) == 12
    table = frame.to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == ["step", "matrix", "metric", "value", "bound", "reason"]
    row = table[(table.matrix == "head.weight") & (table.metric == "effective_rank")].iloc[0]
    assert row.value == frame.matrices["head.weight"].effective_rank
    assert 0 < row.bound < 1e-3
    assert (table[table.metric == "loss"].value == 0.5).all()
    assert len(table[table.metric.str.startswith("singular_value[")]) == 6 * 12 - 5 - 5


def test_only_values_are_computed_where_nothing_asks_for_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Net()
    expected = due(SpectralMonitor(model, every=1).step())
    mixed = SpectralMonitor(model, every=1, reference=None, pairs=[("block.linear1.weight",
                                                           "block.linear2.weight")])  # fmt: skip
    frame = due(mixed.step())
    for name, row in frame.matrices.items():
        np.testing.assert_allclose(
            row.singular_values, expected.matrices[name].singular_values, atol=1e-5
        )

    def refuse(matrices: list[Tensor]) -> None:
        raise AssertionError(f"vectors of {len(matrices)} matrices")

    values = SpectralMonitor(model, every=1, reference=None, pairs=None)
    monkeypatch.setattr("spectral_monitor.step.solvers.svd_list", lambda m: refuse(m) if m else [])
    assert due(values.step()).matrices.keys() == expected.matrices.keys()


def test_k_limits_alignment_and_agreement() -> None:
    frame = due(SpectralMonitor(Net(), every=1, method="exact", k=3).step())
    assert {len(values) for values in frame.alignment.values()} == {3}
    assert {len(values) for values in frame.agreement.values()} == {3}
    assert len(frame.matrices["head.weight"].singular_values) == 7
    few = due(SpectralMonitor(Net(), every=1, method="randomized", k=3).step())
    assert {len(row.singular_values) for row in few.matrices.values()} == {3}


@pytest.mark.parametrize("k", [3, 10])
def test_mass_that_only_rounding_leaves_free_need_not_be_there(k: int) -> None:
    """All there is lies in the leading values, which are rounded to float32."""
    sigma = np.linspace(2.0, 1.0, k)
    s = (sigma * (1 + 3e-7)).astype(np.float32)
    norm = float(np.linalg.norm(sigma))
    low, high = sk.bounds_from_leading_values(torch.from_numpy(s), norm, k)
    estimate = estimate_from_leading(s, norm, (k, k), (float(low), float(high)))
    nuclear = METRICS.index("nuclear_norm")
    assert abs(estimate.values[nuclear] - sigma.sum()) <= estimate.bounds[nuclear]
