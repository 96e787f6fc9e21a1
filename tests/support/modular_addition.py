"""What tests of the kit and of modular addition share."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from experiments.kit.options import Options, parse_options
from experiments.modular_addition.presets import PRESETS, Settings

CPU = torch.device("cpu")


def parse(*argv: str) -> Options[Settings]:
    return parse_options(PRESETS, prog="test", description="test", default_preset="demo", argv=argv)


def recorded(folder: Path) -> list[dict[str, float]]:
    """The recorded frames without the one number that is a time."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "overhead"} for row in rows]
