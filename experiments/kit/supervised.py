"""One run of a supervised experiment, from its options to its ``summary.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from spectral_monitor.run.folder import METRICS_FILE
from torch import Tensor, nn

from experiments.kit.checkpoint import seed_everything
from experiments.kit.history import write_summary
from experiments.kit.options import Options
from experiments.kit.run_folder import SUMMARY, is_finished, open_run_folder
from experiments.kit.scores import Loss, scores
from experiments.kit.settings import TrainingSettings
from experiments.kit.training import Task, train

SettingsT = TypeVar("SettingsT", bound=TrainingSettings)
Examples = tuple[Tensor, Tensor]


def run_supervised(
    name: str, options: Options[SettingsT], make_task: Callable[[Options[SettingsT]], Task]
) -> Path:
    """Train until the settings' end, or what is left of that; print how it went.

    ``make_task`` is called after the generators are seeded. Returns the run's folder.
    """
    folder = open_run_folder(name, options)
    if is_finished(folder):
        print(f"{folder} is finished; --again or --fresh trains it again\n")
    else:
        seed_everything(options.seed)
        settings = options.settings
        title = f"{name.replace('_', ' ')}, {settings.decompose}"
        task = make_task(options)
        training = train(task, settings, folder, options.device, title=title)
        write_summary(name, options, folder, training)
    _print_run(folder)
    return folder


def check_data(options: Options[Any], reads: str | None, *, needed: bool = False) -> None:
    """Raise ``ValueError`` where ``--data`` is missing though it is needed, or is given and would
    not be read. ``reads`` is what the settings read from its folder; None: nothing."""
    if needed and options.data is None:
        raise ValueError(
            f"preset {options.preset} reads {reads}; expected --data with the folder that has it"
        )
    if reads is None and options.data is not None:
        raise ValueError(
            f"--data is {options.data}, and preset {options.preset} with these options reads no "
            "folder; expected no --data"
        )


def train_and_test(
    model: nn.Module,
    train: Examples,
    test: Examples,
    *,
    chunk: int,
    loss: Loss = nn.functional.cross_entropy,
) -> dict[str, Tensor]:
    """Losses and accuracies of both sets of inputs and targets, as `Task.evaluate` gives them.

    ``loss`` and ``chunk`` are those of `scores`.
    """
    found = {}
    for name, (inputs, targets) in (("train", train), ("test", test)):
        found[f"{name}_loss"], found[f"{name}_accuracy"] = scores(
            model, inputs, targets, loss=loss, chunk=chunk
        )
    return found


def _print_run(folder: Path) -> None:
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    final, gap = summary["final"], summary["gap_closed_at_step"]
    print(
        f"{summary['parameters']:,} parameters, {summary['steps']} steps in "
        f"{summary['seconds']:.0f} s ({summary['ms_per_step']:.1f} ms a step). "
        f"Accuracy {final['train_accuracy']:.2%} in training and {final['test_accuracy']:.2%} in "
        f"tests, {summary['best_test_accuracy']:.2%} at its best; "
        + ("gap not closed." if gap is None else f"gap closed at step {gap}.")
    )
    print(f"\nsummary  {(folder / SUMMARY).as_posix()}")
    print(f'metrics  pandas.read_json("{(folder / METRICS_FILE).as_posix()}", lines=True)')
