"""Pins the threads, and turns the results into a table when the run is over."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.table import markdown
from experiments.kit.machine import processor

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="write rows to TABLE.json and TABLE.md")


@pytest.fixture(autouse=True, scope="session")
def pinned_threads() -> None:
    """The peers of NumPy's and SciPy's BLAS take theirs from the environment (make bench)."""
    torch.set_num_threads(THREADS)


def environment() -> dict[str, Any]:
    """What a reader needs to know of the machine."""
    import numpy

    import spectral_kernels as sk

    return {
        "processor": processor(),
        "threads": THREADS,
        "instruction_set": sk.capabilities()["cpu"].detail,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "spectral_kernels": sk.__version__,
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--table")
    plugin = getattr(session.config, "_benchmarksession", None)
    if path is None or plugin is None or not plugin.benchmarks:
        return
    rows = []
    for bench in plugin.benchmarks:
        if not bench.stats.data:
            continue
        row = dict(bench.extra_info)
        if "missing" not in row:
            row |= {"median_ms": bench.stats.median * 1e3, "rounds": bench.stats.rounds}
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(), "rows": rows}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(record))
