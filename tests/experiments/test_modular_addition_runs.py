"""Whole runs of modular addition: killed, continued, finished, drawn."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from matplotlib.image import imread

from experiments.kit.checkpoint import load_checkpoint
from experiments.modular_addition.compare import compare
from tests.support.modular_addition import CPU, recorded

ROOT = Path(__file__).parents[2]


SMALL = [
    *("--p", "7", "--d-model", "16", "--heads", "2", "--d-mlp", "32"),
    *("--max-steps", "300", "--no-stop-when-generalized", "--device", "cpu"),
    *("--checkpoint-every", "50", "--validate-every", "7"),
]


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "experiments.modular_addition", "--out", str(out), *SMALL]


def launch(out: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(out), cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return stdout


def folder_in(out: Path) -> Path:
    (folder,) = (out / "modular_addition").glob("*/seed0")
    return folder


def kill_at(process: subprocess.Popen[str], out: Path, steps: int) -> None:
    """SIGKILL once ``steps`` steps are recorded."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = list(out.glob("modular_addition/*/seed0/metrics.jsonl"))
        if metrics and metrics[0].read_bytes().count(b"\n") >= steps:
            break
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Path, str]:
    """The folder of an uninterrupted small run, and what it printed."""
    out = tmp_path_factory.mktemp("whole")
    stdout = finish(launch(out))
    return folder_in(out), stdout


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(whole_run, tmp_path):
    whole, _ = whole_run
    # Once before the first checkpoint, then between the second and the third.
    kill_at(launch(tmp_path), tmp_path, 20)
    kill_at(launch(tmp_path), tmp_path, 125)
    folder = folder_in(tmp_path)
    checkpoint = load_checkpoint(folder / "checkpoint.pt", CPU)
    assert checkpoint is not None
    assert checkpoint["step"] in (50, 100, 150)
    finish(launch(tmp_path))

    assert [row["step"] for row in recorded(folder)] == list(range(301))
    assert recorded(folder) == recorded(whole)
    assert (folder / "spectra.bin").read_bytes() == (whole / "spectra.bin").read_bytes()
    ends = [load_checkpoint(each / "checkpoint.pt", CPU) for each in (folder, whole)]
    assert_same(*[{k: v for k, v in end.items() if k != "seconds"} for end in ends if end])


def assert_same(a: object, b: object) -> None:
    """Equality through nested containers, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def test_a_run_leaves_everything_it_names(whole_run):
    folder, stdout = whole_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 300
    assert summary["overrides"]["p"] == 7
    assert {row["holds"] for row in summary["claims"]} <= {True, False}
    assert len(summary["claims"]) == 6
    for row in summary["claims"]:
        assert row.keys() == {"claim", "source", "expected", "measured", "holds"}
        assert row["claim"] in stdout
    for name in ("embedding", "attention.value", "mlp_out -> unembedding"):
        assert f"\n{name} " in stdout

    reader = re.search(r'pandas.read_json\("(.*)", lines=True\)', stdout)
    assert reader is not None
    table = pandas.read_json(reader.group(1), lines=True)
    assert len(table) == 301
    final = table["validation_accuracy"].dropna().iloc[-1]
    assert final == summary["final"]["validation_accuracy"]


def test_pictures_and_report_show_something(whole_run):
    folder, _ = whole_run
    picture = imread(folder / "figures/figure2.png")
    # Four panels: every quarter of the width holds more than its background.
    for quarter in np.array_split(picture[..., :3], 4, axis=1):
        assert len(np.unique(quarter.reshape(-1, 3), axis=0)) > 50
    report = (folder / "report.html").read_text()
    assert "Modular addition mod 7" in report
    assert json.loads((folder / "summary.json").read_text())["claims"][0]["claim"] in report


def test_a_finished_run_is_shown_and_not_trained(whole_run):
    folder, first = whole_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    before.pop(folder / "config.json")
    stdout = finish(launch(folder.parents[2]))
    assert "is finished" in stdout
    assert first.strip() in stdout
    # Its steps are those of this machine, and it says so.
    assert json.loads((folder / "summary.json").read_text())["machine"] in stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_two_runs_in_one_figure(whole_run, tmp_path, capsys):
    folder, _ = whole_run
    compare({"first": folder, "second": folder}, tmp_path / "both")
    summary = json.loads((tmp_path / "both/summary.json").read_text())
    assert list(summary["runs"]) == ["first", "second"]
    assert [claim["run"] for claim in summary["claims"]] == ["first"] * 6 + ["second"] * 6
    assert (tmp_path / "both/figures/compare.png").stat().st_size > 10_000
    assert (tmp_path / "both/report.html").exists()
