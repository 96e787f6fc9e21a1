"""Where a run lives, and what its ``config.json`` says.

``<out>/<experiment>/<preset>/seed<N>/``; overrides of the preset are part of the preset's folder
name (``demo+weight_decay=0.0``), and so is the name of the ``--data`` folder, so that runs with
other settings or data never share a folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.kit.machine import machine
from experiments.kit.options import Options

CONFIG = "config.json"
SUMMARY = "summary.json"
CHECKPOINT = "checkpoint.pt"


def run_folder(experiment: str, options: Options[Any]) -> Path:
    """The folder of this run, not created yet."""
    name = options.preset
    for key in sorted(options.overrides):
        name += f"+{key}={options.overrides[key]}"
    return options.out / experiment / with_data(name, options.data) / f"seed{options.seed}"


def with_data(name: str, data: Path | None) -> str:
    """``name``, and that of the folder of data sets where one is given."""
    return name if data is None else f"{name}+data={data.resolve().name}"


def open_run_folder(experiment: str, options: Options[Any]) -> Path:
    """Create the folder, or check that the one there is of the same settings, and write the config.

    With ``existing="fresh"``, or ``"again"`` and a finished run in it, the old folder is deleted
    first. A folder that holds no ``config.json`` of ours is never deleted. Raises ``ValueError``
    where an existing folder was made with other settings (a preset changed since), naming them.
    """
    folder = run_folder(experiment, options)
    config = _config(experiment, options)
    finished = is_finished(folder)
    if options.existing == "fresh" or (options.existing == "again" and finished):
        _delete(folder)
    changed = changed_settings(experiment, options)
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); "
            "give --fresh to delete it, or another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    return folder


def changed_settings(experiment: str, options: Options[Any]) -> list[str]:
    """What differs between these options and the run in their folder; nothing where none is.

    The folder's own name has the preset's, not its settings, and the last part of the data's.
    """
    previous = run_folder(experiment, options) / CONFIG
    if not previous.exists():
        return []
    old, new = json.loads(previous.read_text()), _config(experiment, options)
    before, now = ({**c["settings"], "data": c.get("data")} for c in (old, new))
    return [
        f"{key}: {before.get(key, 'absent')} there, {now.get(key, 'absent')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def is_finished(folder: Path) -> bool:
    """Whether a run has ended there: ``summary.json`` is the last thing a run writes."""
    return (folder / SUMMARY).exists()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` so that a reader sees the old file or the whole new one, never half."""
    partial = path.with_name(path.name + ".partial")
    # allow_nan=False: NaN is not JSON, and a summary that no parser reads helps nobody.
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def _config(experiment: str, options: Options[Any]) -> dict[str, Any]:
    return {
        "experiment": experiment,
        "preset": options.preset,
        "overrides": options.overrides,
        "settings": dataclasses.asdict(options.settings),
        "seed": options.seed,
        "data": None if options.data is None else str(options.data.resolve()),
        "device": str(options.device),
        "machine": machine(options.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _delete(folder: Path) -> None:
    if not folder.exists():
        return
    if not (folder / CONFIG).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not a run folder ({CONFIG} is missing); not deleting it")
    shutil.rmtree(folder)
