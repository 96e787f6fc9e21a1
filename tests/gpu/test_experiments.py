"""Training steps of the experiments as CUDA graphs, beside the same steps launch by launch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spectral_monitor.device.streams import HostStreams

from experiments.decomposed_division.__main__ import parse
from experiments.decomposed_division.presets import PRESETS
from experiments.decomposed_division.train import make_task
from experiments.kit.checkpoint import seed_everything
from experiments.kit.training import train
from experiments.kit.updates import Updates

SETTINGS = replace(
    PRESETS["cpu"], p=11, d_model=32, heads=2, d_mlp=64, batch_size=32, train_measured=None,
    max_steps=120, points=20, checkpoint_every=50, rank=0.5,
)  # fmt: skip


@pytest.mark.parametrize("layers", ["none", "everything"])
def test_a_graph_takes_the_steps_that_launches_take(cuda: str, layers: str) -> None:
    options = replace(parse(["--device", cuda]), settings=replace(SETTINGS, decompose=layers))
    ends = []
    for streams in (HostStreams(), None):
        seed_everything(0)
        task = make_task(options)
        updates = Updates(
            task.loss, task.optimizer, task.batches, task.rate, options.device, streams
        )
        updates.run(0, 40)
        ends.append([parameter.detach().clone() for parameter in task.model.parameters()])
    # The order of atomic sums differs from run to run.
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layers", ["none", "everything"])
def test_a_replayed_step_waits_for_nothing(cuda: str, layers: str) -> None:
    options = replace(parse(["--device", cuda]), settings=replace(SETTINGS, decompose=layers))
    seed_everything(0)
    task = make_task(options)
    updates = Updates(task.loss, task.optimizer, task.batches, task.rate, options.device)
    updates.run(0, 10)
    torch.cuda.set_sync_debug_mode("error")
    try:
        updates.run(10, 20)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_on_a_gpu_is_measured_and_goes_on(cuda: str, tmp_path) -> None:
    options = replace(parse(["--device", cuda]), settings=replace(SETTINGS, decompose="all"))
    for last in (60, 120):
        settings = replace(options.settings, max_steps=last)
        seed_everything(0)
        task = make_task(replace(options, settings=settings))
        training = train(task, settings, tmp_path, options.device, title="division")
        assert training.step == last
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") > 20
