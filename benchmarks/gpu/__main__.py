"""``python -m benchmarks.gpu --out benchmarks/results/gpu-h100``: a .json and a .md.

Exits with 1 where one of our own results is wrong or missing; a target that is missed is a row of
the table, not a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import alignments, decomposed, leading, spectra, training
from benchmarks.gpu.case import OURS, run
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.environment import environment
from benchmarks.gpu.floors import measure
from benchmarks.gpu.table import markdown

FILES = {
    "spectra": spectra,
    "leading": leading,
    "alignments": alignments,
    "decomposed": decomposed,
}


def main() -> int:
    """Run what was asked for and write after every case, so that a kill loses one case."""
    options = _options()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    clock = Clock(options.device)
    ceilings = measure(clock, tiny=options.tiny)
    record: dict[str, Any] = {
        "environment": environment(options.device, ceilings),
        "cases": [],
        "training": [],
    }
    for case in _cases(options):
        record["cases"].append(run(case, clock, ceilings))
        _write(record, options.out)
        print(_told(record["cases"][-1]), flush=True)
    if options.only in (None, "training"):
        record["training"] = training.measure(options.device, tiny=options.tiny)
        _write(record, options.out)
    print(markdown(record))
    wrong = [c for c in record["cases"] if any(_fails(row) for row in c["rows"])]
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=(*FILES, "training"), help="one group of cases")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch finds no CUDA device; --device cpu --tiny shows that the benchmarks run"
        )
    return options


def _cases(options: argparse.Namespace) -> Iterator[Any]:
    for name, module in FILES.items():
        if options.only in (None, name):
            yield from module.cases(options.device, tiny=options.tiny)


def _fails(row: dict[str, Any]) -> bool:
    return row["contender"] == OURS and "missing" in row


def _told(case: dict[str, Any]) -> str:
    times = ", ".join(
        f"{row['contender']} {row['median_ms']:.4g}" if "median_ms" in row
        else f"{row['contender']} ({row['missing']})"
        for row in case["rows"]
    )  # fmt: skip
    return f"{case['operation']} {case['case']}: floor {case['floor_ms']:.3g} ms; {times}"


def _write(record: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(record), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
