"""The training loop of the decomposed experiments: measured at steps evenly spaced in log steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.recorder import Recorder
from torch import Tensor, nn

from experiments.kit.batches import Batches
from experiments.kit.checkpoint import load_checkpoint, save_checkpoint
from experiments.kit.gap import is_closed
from experiments.kit.progress import progress_bar
from experiments.kit.run_folder import CHECKPOINT
from experiments.kit.settings import TrainingSettings
from experiments.kit.updates import Updates


@dataclass(frozen=True)
class Task:
    """What an experiment trains.

    ``loss`` takes indices of training examples, int64 (batch,), and gives their mean loss; see
    `Updates` for what it and the optimizer may do. ``evaluate`` gives scalars to record, with
    ``train_accuracy`` and ``test_accuracy`` among them, and changes nothing, no generator of
    random numbers either. ``rate`` is the learning rate of each step, from 0.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor], Tensor]
    evaluate: Callable[[], Mapping[str, float | Tensor]]
    batches: Batches
    rate: Callable[[int], float]


@dataclass
class Training:
    """Everything that changes while a run goes on, and nothing else: what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    monitor: SpectralMonitor
    step: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The state before step ``step`` is measured and taken."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])


def train(
    task: Task, settings: TrainingSettings, folder: Path, device: torch.device, *, title: str
) -> Training:
    """Train until the settings' end, from the folder's checkpoint where there is one.

    Seed the generators before the task is made; a checkpoint brings them to where they were.
    Leaves ``metrics.jsonl``, ``spectra.bin`` and ``checkpoint.pt`` in ``folder``. A run that was
    killed and one that was not leave the same numbers, timings apart, on one CPU with one number
    of threads. Returns the training at its end.
    """
    checkpoint = load_checkpoint(folder / CHECKPOINT, device)
    # What was recorded after the checkpoint is dropped: those steps come again.
    first_step = 0 if checkpoint is None else checkpoint["step"]
    with Recorder(folder, resume_from=first_step - 1) as recorder:
        monitor = make_monitor(task.model, recorder)
        training = Training(task.model, task.optimizer, monitor)
        # Closing it records the frames that are still on their way from a GPU.
        with contextlib.closing(monitor):
            if checkpoint is not None:
                training.load_state_dict(checkpoint)
            _train_from(training, task, settings, folder, device, title)
    return training


def make_monitor(model: nn.Module, recorder: Recorder | None) -> SpectralMonitor:
    """The singular values of every matrix, exactly, and nothing that needs vectors."""
    return SpectralMonitor(
        model, method="exact", every=1, pairs=None, reference=None, recorder=recorder
    )


def measured_steps(max_steps: int, points: int) -> list[int]:
    """Step 0 and ``points`` more, evenly spaced in log steps from 1 to ``max_steps``.

    Near step 1 even spacing asks for fractions of a step: those that fall on one step count
    once, and the spacing is the widest that still leaves ``points`` of them. All steps where
    there are fewer.
    """
    if points >= max_steps:
        return list(range(max_steps + 1))
    asked = points
    while True:
        steps = np.unique(np.geomspace(1, max_steps, asked).round().astype(np.int64))
        if len(steps) >= points or points == 1:
            return [0, *steps.tolist()[:-1], max_steps]
        asked += 1


def parameter_count(model: nn.Module) -> int:
    """How many numbers the optimizer trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _train_from(
    training: Training,
    task: Task,
    settings: TrainingSettings,
    folder: Path,
    device: torch.device,
    title: str,
) -> None:
    """The loop: measure step ``training.step``, go to the next that is measured, and so on."""
    updates = Updates(task.loss, task.optimizer, task.batches, task.rate, device)
    measured = set(measured_steps(settings.max_steps, settings.points))
    saved = set(range(settings.checkpoint_every, settings.max_steps, settings.checkpoint_every))
    first = training.step
    clock = time.perf_counter() - training.seconds
    with progress_bar(first, settings.max_steps, title) as bar:
        for step in sorted(s for s in measured | saved if s >= first):
            updates.run(training.step, step)
            training.step = step
            bar.update(step - bar.n)
            if step in saved and step > first:
                training.seconds = time.perf_counter() - clock
                save_checkpoint(folder / CHECKPOINT, training.state_dict())
            if step in measured:
                scalars = _measure(training, task)
                bar.set_postfix({k: f"{v:.3g}" for k, v in scalars.items()}, refresh=False)
                if settings.stop_at_gap and _gap_is_closed(scalars, settings):
                    break
    training.seconds = time.perf_counter() - clock


def _measure(training: Training, task: Task) -> dict[str, float]:
    """Spectra, losses and accuracies of the weights after ``training.step`` updates."""
    # On a GPU this waits, at no more than `points` steps of the run.
    scalars = {name: float(value) for name, value in task.evaluate().items()}
    training.monitor.step(training.step, **scalars)
    return scalars


def _gap_is_closed(scalars: Mapping[str, float], settings: TrainingSettings) -> bool:
    return is_closed(scalars["train_accuracy"], scalars["test_accuracy"], settings.gap_level)
