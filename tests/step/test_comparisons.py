"""Agreement with other steps and runs, clusters, updates, gradients, memory."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.measurement import METHODS
from spectral_monitor.memory import format_bytes
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from torch import Tensor, nn

import spectral_kernels as sk
from spectral_kernels.entry.results import METRICS
from tests.support.changes import follow, moving
from tests.support.monitored import due

# Methods that know whole spectra.
WHOLE = tuple(method for method in METHODS if method != "randomized")


def with_values(*values: float, seed: int = 0, shape: tuple[int, int] | None = None) -> Tensor:
    generator = np.random.default_rng(seed)
    m, n = shape or (len(values), len(values))
    U, V = (np.linalg.qr(generator.standard_normal((side, side)))[0] for side in (m, n))
    r = len(values)
    return torch.from_numpy((U[:, :r] * np.array(values)) @ V[:r]).float()


@pytest.mark.parametrize("method", WHOLE)
def test_vectors_of_values_that_cross_are_not_identifiable(
    method: str, backend: str, tmp_path: Path
) -> None:
    upper = [2.0, 1.98, 1.8, 1.6, 1.58]
    trajectory = [{"a": with_values(4.0, x, 1.7, 1.0)} for x in upper]
    frames = follow(trajectory, pairs=None, method=method)
    flags = [frame.identifiable["a"].tolist() for frame in frames]
    # Values have moved by 0.2 and more since the start from the third step on: a gap within that,
    # here or there, is a possible crossing.
    crossed = [True, False, False, True]
    assert flags == [[True] * 4, [True] * 4, crossed, crossed, crossed]
    # Compared with the step before, the last has moved by 0.02.
    for reference in ("previous", None, "final"):
        recorder = Recorder(tmp_path / method / backend) if reference == "final" else None
        options = {"pairs": [("a", "a")], "reference": reference, "recorder": recorder}
        flags = [f.identifiable["a"].tolist() for f in follow(trajectory, method=method, **options)]
        assert flags == [[True] * 4, [True] * 4, crossed, crossed, [True] * 4]
    assert frames[0].identifiable["a"].dtype == np.bool_
    # The pair changed places: single vectors are lost, the plane is not.
    single = [frame.agreement["a"][1] for frame in frames]
    np.testing.assert_allclose(single, [1, 1, 1, 0, 0], atol=1e-5)
    whole = [frame.subspace_agreement["a"][1] for frame in frames]
    np.testing.assert_allclose(whole, 1, atol=1e-5)
    for frame in frames:
        alone = frame.identifiable["a"]
        np.testing.assert_allclose(
            frame.subspace_agreement["a"][alone], frame.agreement["a"][alone], rtol=1e-6
        )


def orthogonal(r: int, seed: int) -> Tensor:
    return with_values(*[1.0] * r, seed=seed)


@pytest.mark.parametrize("method", WHOLE)
@pytest.mark.parametrize("start", ["orthogonal", "identity", "equal pairs"])
def test_vectors_that_the_reference_does_not_have_are_not_identifiable(
    method: str, start: str, backend: str, tmp_path: Path
) -> None:
    """The SVD of a matrix with equal values is a choice, whatever comes of it later: against it
    no single vector means something, though values have come apart and hardly move any more."""
    r = 32
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal((r, r))).float()
    first = {
        "orthogonal": orthogonal(r, 0),
        "identity": torch.eye(r),
        "equal pairs": with_values(*np.repeat(np.linspace(4.0, 1.0, r // 2), 2).tolist()),
    }[start]
    # A jump of 1e-3, and then rest.
    later = first + 1e-3 * noise / np.sqrt(r)
    trajectory = [{"a": x} for x in (first, later, later + 1e-6 * noise)]
    given = {"a": sk.svd(first)}
    follow(trajectory[:1], pairs=None, reference="final", recorder=Recorder(tmp_path / "first"))
    for reference in ("init", given, list(given.values()), tmp_path / "first"):
        frames = follow(trajectory, pairs=None, method=method, reference=reference)
        for frame in frames:
            assert not frame.identifiable["a"].any()
        if start != "equal pairs":
            np.testing.assert_allclose(frames[-1].subspace_agreement["a"], 1.0, atol=1e-4)
            assert np.median(frames[-1].agreement["a"]) < 0.3
        else:
            # The planes of pairs are those of the start, to the size of the change.
            np.testing.assert_allclose(frames[-1].subspace_agreement["a"], 1.0, atol=1e-3)
    # Against the step before, the last one is another matter, where bounds are that small.
    if method != "exact":
        return
    before = follow(trajectory, pairs=None, method=method, reference="previous")[-1]
    assert before.identifiable["a"].mean() > 0.5
    assert before.agreement["a"][before.identifiable["a"]].min() > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_isolated_values_stay_identifiable_against_the_start(method: str, backend: str) -> None:
    """Vectors that are turned on purpose, with values where they were: they are told apart at both
    ends, and their agreement is the cosine of the turn."""
    values = [8.0, 6.0, 4.0, 3.0, *[1.0] * 8]
    U, V = (torch.linalg.qr(orthogonal(12, seed)).Q for seed in (1, 2))
    S = torch.tensor(values)
    turn = torch.eye(12)
    turn[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    trajectory = [{"a": (U * S) @ V}, {"a": (U @ turn * S) @ V}]
    frames = follow(trajectory, pairs=None, method=method)
    isolated = [True] * 4 + [False] * 8
    for frame in frames:
        flags = frame.identifiable["a"].tolist()
        assert flags == isolated
    np.testing.assert_allclose(frames[1].agreement["a"][:4], [0.8, 0.8, 1, 1], atol=1e-4)


def test_identifiable_says_which_agreements_mean_something() -> None:
    """A random matrix and a random change of it: of the vectors that are identifiable nearly all
    still point the same way; among the others are those that were lost."""
    good, bad = [], []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        A, E = (torch.from_numpy(generator.standard_normal((48, 48))).float() for _ in "AE")
        # One jump and then nothing: the last step's movement says nothing of it.
        frame = follow([{"a": A}, {"a": A + 0.02 * E}, {"a": A + 0.02 * E}], pairs=None)[-1]
        flags = frame.identifiable["a"]
        good += frame.agreement["a"][flags].tolist()
        bad += frame.agreement["a"][~flags].tolist()
    assert len(good) > 0.5 * (len(good) + len(bad))
    # Measured: none of 849 identifiable ones below 0.5, 7 % of the 111 others.
    assert np.mean(np.array(good) < 0.5) < 0.01
    assert np.mean(np.array(bad) < 0.5) > 0.03


def test_a_reference_of_fewer_values_leaves_the_last_ones_unknown() -> None:
    A = with_values(6, 5, 4, 3, 2, 1)
    U, S, Vh = sk.svd(A)
    few = {"a": sk.SVD(U[:, :3], S[:3], Vh[:3])}
    (frame,) = follow([{"a": A}], pairs=None, reference=few)
    # What comes after the third value of the reference is not known.
    assert frame.identifiable["a"].tolist() == [True, True, False, False, False, False]
    assert len(frame.agreement["a"]) == 3
    with pytest.raises(ValueError, match=r"SVD of 'a' has singular values of shape \(0,\)"):
        SpectralMonitor({"a": A}, every=1, reference={"a": sk.SVD(U, S[:0], Vh)})


def test_what_is_identifiable_survives_a_state() -> None:
    trajectory = [{"a": x} for x in (orthogonal(8, 0), orthogonal(8, 0) + 1e-3 * orthogonal(8, 5))]
    for reference in ("init", "previous"):
        weights = dict(trajectory[0])
        watch = SpectralMonitor(weights, every=1, pairs=None, reference=reference, method="exact")
        watch.step()
        weights.update(trajectory[1])
        resumed = SpectralMonitor(weights, every=1, pairs=None, reference=reference, method="exact")
        resumed.load_state_dict(watch.state_dict())
        want, got = due(watch.step()), due(resumed.step())
        np.testing.assert_array_equal(want.identifiable["a"], got.identifiable["a"])
        assert not got.identifiable["a"].any()


def test_equal_and_zero_values_are_clusters_at_any_step(backend: str) -> None:
    A = with_values(2.0, 1.0, 1.0, 0.0, 0.0, shape=(7, 5))
    (frame,) = follow([{"a": A}], pairs=None)
    assert frame.identifiable["a"].tolist() == [True, False, False, False, False]
    # An SVD of the same matrix by another method: other vectors in the clusters.
    U, S, Vh = np.linalg.svd(A.numpy(), full_matrices=False)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((2, 2)))[0].astype(np.float32)
    U[:, 1:3], Vh[1:3] = U[:, 1:3] @ turn, turn.T @ Vh[1:3]
    given = {"a": sk.SVD(U, S, Vh)}
    (compared,) = follow([{"a": A}], pairs=None, reference=given)
    assert compared.agreement["a"][1:3].max() < 0.99
    np.testing.assert_allclose(compared.subspace_agreement["a"][:3], 1.0, atol=1e-4)


def test_the_last_of_a_truncated_spectrum_is_not_identifiable(backend: str) -> None:
    trajectory = [{"a": with_values(9, 8, 7, 6, 1e-3, 1e-3)}]
    (frame,) = follow(trajectory, pairs=None, method="randomized", k=4)
    assert frame.identifiable["a"].tolist() == [True, True, True, False]
    (whole,) = follow(trajectory, pairs=None, k=4)
    assert whole.identifiable["a"].tolist() == [True] * 4


def test_a_nan_matrix_has_no_identifiable_vectors_and_recovers() -> None:
    steps = moving(4)
    spoiled = [dict(state) for state in steps]
    spoiled[2]["a"] = torch.full((9, 6), math.nan)
    frames, expected = (follow(trajectory) for trajectory in (spoiled, steps))
    assert not frames[2].identifiable["a"].any()
    assert np.isnan(frames[2].subspace_agreement["a"]).all()
    np.testing.assert_array_equal(frames[2].identifiable["b"], expected[2].identifiable["b"])
    assert np.isfinite(frames[3].subspace_agreement["a"]).all()
    assert frames[3].identifiable["a"].any()


def test_only_matrices_with_vectors_have_clusters() -> None:
    (frame,) = follow(moving(1), pairs=None, reference=None)
    assert frame.identifiable == {}
    (frame,) = follow(moving(1), pairs=None, reference={"b": sk.svd(torch.randn(5, 9))})
    assert list(frame.identifiable) == ["b"]


@pytest.mark.parametrize("reference", ["init", "previous"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_monitor_compares_the_same(method: Any, reference: str) -> None:
    options: dict[str, Any] = {"watch": ("weights", "updates", "gradients"), "method": method,
                               "reference": reference}  # fmt: skip
    steps = moving(6)
    weights = dict(steps[0])
    watch = SpectralMonitor(weights, **{"every": 1, **options})
    for state in steps[:3]:
        weights.update(state)
        watch.step()
    file = io.BytesIO()
    torch.save(watch.state_dict(), file)
    file.seek(0)
    resumed = SpectralMonitor(weights, **{"every": 1, **options})
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for state in steps[3:]:
        weights.update(state)
        a, b = due(watch.step()), due(resumed.step())
        for group in ("agreement", "subspace_agreement", "identifiable", "overlap"):
            for name, values in getattr(a, group).items():
                np.testing.assert_array_equal(values, getattr(b, group)[name])
        for name, row in a.matrices.items():
            for metric in METRICS:
                np.testing.assert_array_equal(
                    getattr(row, metric), getattr(b.matrices[name], metric)
                )


def test_a_resumed_monitor_knows_how_far_values_moved() -> None:
    weights = {"a": with_values(4.0, 1.9, 1.7, 1.0)}
    watch = SpectralMonitor(weights, every=1, method="exact", pairs=None)
    watch.step()
    resumed = SpectralMonitor(weights, every=1, method="exact", pairs=None)
    resumed.load_state_dict(watch.state_dict())
    weights["a"] = with_values(4.0, 1.6, 1.7, 1.0)
    assert due(resumed.step()).identifiable["a"].tolist() == [True, False, False, True]


def test_states_of_another_watch_are_refused() -> None:
    with_updates = SpectralMonitor(moving(1)[0], every=1, watch=("weights", "updates"))
    with_updates.step()
    with pytest.raises(ValueError, match="watch='updates' differs"):
        SpectralMonitor(moving(1)[0], every=1).load_state_dict(with_updates.state_dict())
    for wrong in ("updates", ("gradients",), ("weights", "activations")):
        with pytest.raises(ValueError, match="watch: expected 'weights' and, if wanted"):
            SpectralMonitor(moving(1)[0], every=1, watch=wrong)


def test_memory_is_told_in_advance(tmp_path: Path) -> None:
    weights = {"a": torch.randn(40, 30), "b": torch.randn(20, 40, dtype=torch.float64)}
    options: dict[str, Any] = {"watch": ("weights", "updates"), "k": 7}
    watch = SpectralMonitor(weights, method="exact", reference="init", **{"every": 1, **options})
    plan = watch.memory()
    assert plan.weights == {"a": 4 * 1200, "b": 8 * 800}
    assert plan.kept == {
        "reference": {"a": 4 * 7 * 70, "b": 8 * 7 * 60},
        "copy for updates": {"a": 4 * 1200, "b": 8 * 800},
    }
    before = SpectralMonitor(
        weights, method="exact", reference="previous", **{"every": 1, **options}
    )
    assert before.memory() == plan
    before.step()
    assert before.memory() == plan
    held = before._measurement.comparisons.changes._before
    assert held is not None
    assert sum(x.nbytes for x in held) == sum(plan.kept["copy for updates"].values())
    text = watch.explain()
    assert "memory kept between steps: 16.5 kB, 1.48 times the weights" in text
    assert "reference 1.96 kB, copy for updates 4.8 kB" in text
    few = SpectralMonitor(weights, every=1, method="randomized", reference=None, k=3)
    assert few.memory().kept == {"solver": {"a": 4 * 3 * 30, "b": 8 * 3 * 40}}
    few.step()
    starts = few._measurement.solver.state()  # type: ignore[union-attr]
    assert {name: x.nbytes for name, x in starts.items()} == few.memory().kept["solver"]
    saving = SpectralMonitor(
        weights, every=1, method="exact", reference="final", k=7, recorder=Recorder(tmp_path)
    )
    saving.step()
    saving.close()
    size = (tmp_path / "vectors.bin").stat().st_size
    assert saving.memory().disk_per_step == size == 8 + 2 * (7 * 70 + 7 * 60)
    assert saving.memory().kept == {}
    assert "saved vectors: 1.83 kB on disk for each measured step, 1.83 MB" in saving.explain()


def test_random_weights_align_as_chance_says(tmp_path: Path) -> None:
    """Also by heads, with grouped parts of one fused weight, and for a table's columns."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 8)
            self.attention = nn.MultiheadAttention(8, 2, bias=False)
            self.up = nn.Linear(8, 20)

    model = Attention()
    watch = SpectralMonitor(model, every=1, reference="previous", recorder=Recorder(tmp_path))
    frames = []
    for _ in range(400):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        frames.append(due(watch.step()))
    watch.close()
    chance = frames[0].chance
    assert chance.alignment.keys() == frames[0].alignment.keys()
    # Heads have vectors of four entries, whole matrices of eight.
    per_head, whole = sk.chance_alignment(4), sk.chance_alignment(8)
    queries, keys = (f"attention.in_proj_weight[{x}]" for x in "qk")
    assert set(chance.alignment.values()) == {per_head, whole}
    assert chance.alignment[queries, keys] == per_head
    for pair, expected in chance.alignment.items():
        values = np.array([frame.alignment[pair] for frame in frames])
        error = 5 * values.mean(axis=1).std() / np.sqrt(len(values))
        assert values.mean() == pytest.approx(expected, abs=error), pair
    for name, expected in chance.agreement.items():
        values = np.array([frame.agreement[name] for frame in frames[1:]])
        assert values.mean() == pytest.approx(expected, rel=0.1), name
    run = load_run(tmp_path)
    assert run.chance == chance
    told = next(line for line in watch.explain().splitlines() if f"-> {keys}" in line)
    assert (
        "queries meet keys in each head, as in torch.MultiheadAttention, mean of 2 (preset)" in told
    )
    assert told.endswith(f"by chance {per_head:.2g}")


def test_format_of_sizes() -> None:
    assert [format_bytes(x) for x in (0, 999, 1000, 1_234_567, 10**13)] == [
        "0 B", "999 B", "1 kB", "1.23 MB", "10 TB",
    ]  # fmt: skip
