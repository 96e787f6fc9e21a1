"""The GPU benchmarks run from end to end on the CPU, at sizes that show nothing but that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.comparison import Comparison, Contender
from benchmarks.gpu.case import OURS, Case, run, times_faster, times_floor
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.floors import Ceilings, Work
from benchmarks.gpu.table import markdown

ROOT = Path(__file__).resolve().parents[2]
CEILINGS = Ceilings(1e12, {"fp32": 1e13, "fp64": 1e13, "bf16": 1e14})


@pytest.mark.slow
def test_all_cases_run_and_are_told(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads(out.with_suffix(".json").read_text())
    operations = {case["operation"].partition(",")[0] for case in record["cases"]}
    assert operations == {"svdvals", "svd", "rsvd", "tracked", "alignment", "usv_matmul"}
    for case in record["cases"]:
        ours = next(row for row in case["rows"] if row["contender"] == OURS)
        assert ours["times_floor"] == pytest.approx(ours["median_ms"] / case["floor_ms"])
    assert next(row["case"] for row in record["training"]) == "tracked, k = 32"
    assert out.with_suffix(".md").read_text() == markdown(record)


def compared(error: float, limit: float | None) -> dict[str, Any]:
    def fails() -> None:
        raise RuntimeError("no such driver\nand more")

    contenders = (
        Contender(OURS, lambda: 1, lambda found: error, limit),
        Contender("peer", lambda: 1, lambda found: 0.5),
        Contender("absent", lambda: 1, lambda found: 0.0, needs="no_such_package"),
        Contender("broken", fails, lambda found: 0.0),
    )
    targets = (
        times_faster("ten thousand times the peer", "peer", 1e4),
        times_floor("a million million times the floor", 1e12),
        times_faster("a time that is not there", "broken", 1.0),
    )
    case = Case(Comparison("nothing", "1", contenders, "one"), Work(1.0, 1.0), targets)
    return run(case, Clock("cpu"), CEILINGS)


def test_a_wrong_result_has_no_time() -> None:
    ours = compared(error=2.0, limit=1.0)["rows"][0]
    assert "median_ms" not in ours
    assert ours["missing"] == "errs by 2, limit 1"
    assert "median_ms" not in compared(error=float("nan"), limit=1.0)["rows"][0]


def test_what_cannot_run_says_why_and_targets_are_judged() -> None:
    found = compared(error=0.5, limit=1.0)
    rows = {row["contender"]: row for row in found["rows"]}
    assert rows["absent"]["missing"] == "no_such_package is not installed"
    assert rows["broken"]["missing"] == "no such driver"
    faster, floor, missing = found["targets"]
    assert not faster["holds"]
    assert floor["holds"]
    assert missing["missing"] == "no time of broken"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_the_session_says_what_it_needs(tmp_path: Path) -> None:
    script = ["bash", str(ROOT / "benchmarks/gpu_session.sh")]
    environment = {**os.environ, "PYTHON": sys.executable}

    def outcome(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [*script, *arguments], capture_output=True, text=True, env=environment
        )
        return done.returncode, done.stderr

    assert outcome()[0] == 2
    status, told = outcome(str(tmp_path / "out"), "everything")
    assert status == 2
    assert "everything: expected tests, sanitizers, benchmarks or experiments" in told
    status, told = outcome(str(tmp_path / "out"))
    assert status == 1
    assert "finds no CUDA device" in told
