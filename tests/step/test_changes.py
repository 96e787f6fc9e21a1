"""Updates and gradients as rows beside the weights, and the directions they share with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.frame import MatrixRow
from torch import Tensor, nn

from tests.support.monitored import due


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6, sparse=True)
        self.up, self.down = nn.Linear(6, 11), nn.Linear(11, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(self.table(x))))
        return out


def train(model: Net, seed: int) -> None:
    x = torch.randint(0, 7, (5,), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(x).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad.to_dense()


def assert_values_of(row: MatrixRow, A: np.ndarray) -> None:
    expected = np.linalg.svd(A, compute_uv=False)
    np.testing.assert_allclose(row.singular_values, expected, atol=1e-6)


def assert_overlap(overlap: np.ndarray, change: np.ndarray, weight: np.ndarray) -> None:
    """On both sides; of a change of lower rank the last vectors are arbitrary."""
    U, S, Vh = np.linalg.svd(change, full_matrices=False)
    W = np.linalg.svd(weight, full_matrices=False)
    k = min(10, len(S))
    if S[-1] > 1e-3 * S[0] and k < 10:
        for side, (x, y) in enumerate(((U, W[0]), (Vh.T, W[2].T))):
            expected = ((x[:, :k].T @ y[:, :k]) ** 2).sum() / k
            np.testing.assert_allclose(overlap[side], expected, atol=1e-4)


def test_updates_and_gradients_are_rows_like_the_weights(tmp_path: Path, backend: str) -> None:
    model = Net()
    watch = SpectralMonitor(
        model,
        every=1,
        watch=("weights", "updates", "gradients"),
        recorder=Recorder(tmp_path, precision="full"),
    )
    names = [matrix.name for matrix in watch.matrices]
    train(model, 0)
    first = due(watch.step())
    assert list(first.matrices) == [
        *names,
        *(f"{name}[update]" for name in names),
        *(f"{name}[gradient]" for name in names),
    ]
    assert not first.matrices["up.weight[update]"].finite
    assert np.isnan(first.matrices["up.weight[update]"].singular_values).all()
    assert first.matrices["up.weight[gradient]"].finite
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, 1)
    train(model, 2)  # two optimizer steps between measured ones
    frame = due(watch.step())
    third = due(watch.step())
    watch.close()
    # Nothing happened since.
    assert third.matrices["up.weight[update]"].frobenius_norm == 0
    for name in names:
        parameter = model.get_parameter(name)
        update = frame.matrices[f"{name}[update]"]
        assert update.finite
        assert (update.kind, update.method, update.is_weight) == ("update", "exact", False)
        change = (parameter.detach() - before[name]).numpy()
        assert_values_of(update, change)
        gradient = frame.matrices[f"{name}[gradient]"]
        assert gradient.kind == "gradient"
        if parameter.grad is None:
            assert name == "unused.weight"
            assert not gradient.finite
            assert np.isnan(frame.overlap[f"{name}[gradient]"]).all()
            continue
        assert_values_of(gradient, parameter.grad.to_dense().numpy())
        assert_overlap(frame.overlap[f"{name}[update]"], change, parameter.detach().numpy())
    # Averages are those of the weights.
    ranks = [frame.matrices[name].stable_rank for name in names]
    assert frame.mean("stable_rank") == pytest.approx(np.mean(ranks))
    run = load_run(tmp_path)
    assert run.weights == names
    assert run.overlap["up.weight[update]"].shape == (3, 2)
    np.testing.assert_array_equal(
        run.overlap["up.weight[update]"][1], frame.overlap["up.weight[update]"]
    )
    assert run.metrics["stable_rank"]["up.weight[update]"][1] == pytest.approx(
        frame.matrices["up.weight[update]"].stable_rank
    )


def test_overlap_with_the_leading_directions() -> None:
    """An update along the weight's first two directions, and one that avoids its first ten."""
    U, V = (np.linalg.qr(np.random.default_rng(i).standard_normal((30, 30)))[0] for i in (0, 1))
    W = (U * np.linspace(30, 1, 30)) @ V
    inside = (U[:, :10] * np.linspace(2, 1, 10)) @ V[10:20]
    weights = {"a": torch.from_numpy(W)}
    watch = SpectralMonitor(
        weights, every=1, watch=("weights", "updates"), pairs=None, reference=None
    )
    watch.step()
    weights["a"] = weights["a"] + 1e-4 * torch.from_numpy(inside)
    left, right = due(watch.step()).overlap["a[update]"]
    assert left == pytest.approx(1, abs=1e-3)
    assert right == pytest.approx(0, abs=1e-3)


def test_overlap_leaves_arbitrary_directions_out() -> None:
    """A change of rank two has two directions, whatever completes its basis."""
    U, V = (np.linalg.qr(np.random.default_rng(i).standard_normal((30, 30)))[0] for i in (0, 1))
    weights = {"a": torch.from_numpy((U * np.linspace(30, 1, 30)) @ V), "zero": torch.zeros(5, 5)}
    weights["still"] = weights["a"].clone()
    watch = SpectralMonitor(
        weights, every=1, watch=("weights", "updates"), pairs=None, reference=None
    )
    watch.step()
    change = U[:, [3, 20]] @ V[[4, 25]]
    weights["a"] = weights["a"] + 1e-4 * torch.from_numpy(change)
    overlap = due(watch.step()).overlap
    np.testing.assert_allclose(overlap["a[update]"], [0.5, 0.5], atol=1e-3)
    assert np.isnan(overlap["still[update]"]).all()
    assert np.isnan(overlap["zero[update]"]).all()
    weights["a"] = 1.01 * weights["a"]
    np.testing.assert_allclose(due(watch.step()).overlap["a[update]"], 1, atol=1e-3)


def test_large_changes_are_randomized() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(400, 390, generator=generator)}
    watch = SpectralMonitor(
        weights, every=1, watch=("weights", "updates"), pairs=None, reference=None, k=5
    )
    watch.step()
    left, right = (torch.randn(400, 3, generator=generator) for _ in "ab")
    update = left @ right[:390].mT
    weights["a"] = weights["a"] + update
    row = due(watch.step()).matrices["a[update]"]
    assert row.method == "randomized"
    assert len(row.singular_values) == 32
    expected = torch.linalg.svdvals(update.double())[:3]
    np.testing.assert_allclose(row.singular_values[:3], expected, rtol=1e-4)
