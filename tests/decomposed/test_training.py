"""Decomposed models in everything that people do with models: train, save, copy, compile, share."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

import spectral_kernels as sk
from tests.support.decomposed_ddp import PROCESSES, model_and_data, train
from tests.support.decomposed_models import LanguageModel, Mixed, count, error, mlp

ROOT = Path(__file__).resolve().parents[2]

# Sums in another order, in float32. Measured: at most 3.1e-7 of the largest entry.
SAME = 5e-6


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def steps(model: nn.Module, optimizer: Any, ids: Tensor, n: int) -> list[float]:
    """Train the model to say what follows each token of a cycle."""
    losses = []
    for _ in range(n):
        optimizer.zero_grad()
        scores = model(ids)
        loss = nn.functional.cross_entropy(scores.flatten(0, -2).float(), (ids + 1) % 30)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_state_dicts_go_from_model_to_model() -> None:
    first = sk.decompose_model(Mixed(), {"*": 0.5})
    second = sk.decompose_model(Mixed(), {"*": 0.5})
    x = torch.randn(2, 4, 5)
    assert error(second(x), first(x)) > 0.01
    assert {name.rpartition(".")[2] for name in first.state_dict()} == {
        "U", "Sigma", "Vh", "weight", "bias"
    }  # fmt: skip
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(second(x), first(x))
    with pytest.raises(RuntimeError, match=r"size mismatch for by_name.head.U"):
        second.load_state_dict(sk.decompose_model(Mixed(), {"*": 0.6}).state_dict())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("thin", [False, True])
def test_copies_compute_the_same_and_stay_tied(how: Any, thin: bool) -> None:
    model, ids = sk.decompose_model(LanguageModel(), {"*": 4}), torch.arange(30)
    if thin:
        sk.recompose_model(model, form="smallest")
    copied = how(model)
    assert torch.equal(copied(ids), model(ids))
    assert count(copied) == count(model)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
    if not thin:
        assert copied.embed.U is copied.head.U
    before = model(ids)
    steps(copied, torch.optim.SGD(copied.parameters(), 0.1), ids, 1)
    assert torch.equal(model(ids), before)


def test_tied_embeddings_train_as_one_and_come_back_as_one() -> None:
    """Against the same product with the three factors as plain tensors."""
    model, ids = sk.decompose_model(LanguageModel(), {"embed": 4, "head": 4}), torch.arange(30)
    U, Sigma, Vh = (f.detach().clone().requires_grad_() for f in model.embed.factors())
    table = U @ Sigma @ Vh
    h = torch.tanh(model.hidden(table[ids]))
    expected_loss = nn.functional.cross_entropy(h @ table.mT + model.head.bias, (ids + 1) % 30)
    expected = torch.autograd.grad(expected_loss, [U, Sigma, Vh])
    loss = nn.functional.cross_entropy(model(ids), (ids + 1) % 30)
    found = gradients(model, loss)
    for name, gradient in zip(("U", "Sigma", "Vh"), expected, strict=True):
        assert error(found[f"embed.{name}"], gradient) < SAME
    losses = steps(model, torch.optim.Adam(model.parameters(), 0.05), ids, 60)
    assert losses[-1] < 0.3 * losses[0]
    y = model(ids)
    sk.recompose_model(model)
    assert model.embed.weight is model.head.weight
    assert error(model(ids), y) < SAME
    again = steps(model, torch.optim.Adam(model.parameters(), 0.01), ids, 20)
    assert again[-1] < losses[-1]
    assert model.embed.weight is model.head.weight


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_in_one_graph_with_the_same_gradients(backend: str) -> None:
    torch.compiler.reset()
    model, x = sk.decompose_model(mlp(20, 16, 8), {"*": 6}), torch.randn(9, 20, requires_grad=True)
    y = model(x)
    expected = gradients(model, y.square().sum())
    dx, x.grad = x.grad, None
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    z = compiled(x)
    found = gradients(model, z.square().sum())
    assert error(z, y) < SAME
    assert found.keys() == expected.keys()
    assert all(error(found[name], gradient) < SAME for name, gradient in expected.items())
    assert error(x.grad, dx) < SAME


def test_a_compiled_mixed_model_is_one_graph() -> None:
    torch.compiler.reset()
    model, x = sk.decompose_model(Mixed(), {"*": 0.5}), torch.randn(2, 4, 5)
    y = model(x)
    expected = gradients(model, y.square().sum())
    z = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    found = gradients(model, z.square().sum())
    assert error(z, y) < SAME
    assert all(error(found[name], gradient) < SAME for name, gradient in expected.items())


@pytest.mark.parametrize("tied", [True, False])
def test_autocast_trains_in_bfloat16_with_float32_gradients(tied: bool) -> None:
    model, ids = LanguageModel(), torch.arange(30)
    if not tied:
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    sk.decompose_model(model, {"*": 6})
    optimizer = torch.optim.AdamW(sk.parameter_groups(model, 0.1), lr=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids).dtype == torch.bfloat16
        losses = steps(model, optimizer, ids, 50)
    assert losses[-1] < 0.5 * losses[0]
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_autocast_of_convolution_and_attention() -> None:
    model, x = sk.decompose_model(Mixed(), {"*": 0.5}), torch.randn(4, 4, 6)
    target = torch.randn(4, 6, 5)
    optimizer = torch.optim.AdamW(sk.parameter_groups(model, 0.01), lr=0.01)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        loss = (y.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_data_parallel_training_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.decomposed_ddp"]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, cwd=ROOT)
        for rank in range(PROCESSES)
    ]
    model, ids, targets = model_and_data()
    expected = train(model, model, ids, targets)
    for process in processes:
        assert process.wait(timeout=180) == 0
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    for name in expected[0]:
        # Both processes have one gradient and one value of each factor, bit for bit.
        assert torch.equal(found[0][0][name], found[1][0][name]), name
        assert torch.equal(found[0][1][name], found[1][1][name]), name
        assert error(found[0][0][name], expected[0][name]) < SAME, name
        # Adam divides by |gradient|: what is nearly zero there moves by rounding's sign.
        assert error(found[0][1][name], expected[1][name]) < 1e-3, name


def test_averages_of_weights() -> None:
    """EMA and SWA average factors, as every parameter; tied ones stay tied."""
    model, ids = sk.decompose_model(LanguageModel(), {"*": 4}), torch.arange(30)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    swa = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    schedule = SWALR(optimizer, swa_lr=0.02, anneal_epochs=2)
    seen = []
    for _ in range(3):
        steps(model, optimizer, ids, 1)
        schedule.step()
        ema.update_parameters(model)
        swa.update_parameters(model)
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name in seen[0]:
        values = [one[name] for one in seen]
        # The first update copies.
        decayed = values[0] / 4 + values[1] / 4 + values[2] / 2
        assert error(ema.module.get_parameter(name), decayed) < SAME
        assert error(swa.module.get_parameter(name), sum(values) / 3) < SAME
    assert swa.module.embed.U is swa.module.head.U
    sk.recompose_model(swa.module)
    assert swa.module.embed.weight is swa.module.head.weight
    assert bool(swa(ids).isfinite().all())


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_foreach_and_fused_steps_are_those_of_a_loop(optimizer: Any) -> None:
    start, x = sk.decompose_model(mlp(12, 10, 4), {"*": 3}), torch.randn(8, 12)
    found = []
    for options in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        model = copy.deepcopy(start)
        steps_of = optimizer(sk.parameter_groups(model, 0.1), lr=0.01, **options)
        for _ in range(3):
            steps_of.zero_grad()
            model(x).square().mean().backward()
            steps_of.step()
        found.append(model.state_dict())
    for other in found[1:]:
        assert all(error(other[name], value) < SAME for name, value in found[0].items())


def test_a_checkpoint_goes_on_to_the_same_numbers() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = sk.decompose_model(LanguageModel(), {"*": 4})
        return model, torch.optim.AdamW(sk.parameter_groups(model, 0.1), lr=0.01)

    ids = torch.arange(30)
    model, optimizer = fresh()
    steps(model, optimizer, ids, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = steps(model, optimizer, ids, 3)
    file.seek(0)
    again, again_optimizer = fresh()
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    again_optimizer.load_state_dict(saved["optimizer"])
    assert steps(again, again_optimizer, ids, 3) == expected


def test_training_after_compression_goes_on() -> None:
    model, ids = sk.decompose_model(LanguageModel(), {"*": 1.0}), torch.arange(30)
    first = steps(model, torch.optim.Adam(model.parameters(), 0.03), ids, 60)
    drifts = sk.decomposition_drift(model).values()
    assert all(min(drift) > 1e-3 for drift in drifts)
    sk.compress_model(model, energy=0.98)
    cut = [m.rank for m in model.modules() if isinstance(m, DecomposedLayer)]
    assert min(cut) < 12
    after = steps(model, torch.optim.Adam(model.parameters(), 0.01), ids, 20)
    assert after[-1] < first[0] / 2
    assert after[-1] < after[0]
