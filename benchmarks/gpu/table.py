"""The Markdown table of a GPU run.

``python -m benchmarks.gpu.table results.json`` prints it again from the stored numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import OURS


def markdown(record: dict[str, Any]) -> str:
    """Return device and ceilings, then case by case ours and the peers, then the targets."""
    parts = [_head(record["environment"]), _cases(record["cases"])]
    parts += [_training(record["training"])] if record["training"] else []
    targets = [t for c in (*record["cases"], *record["training"]) for t in c["targets"]]
    parts += [_targets(targets)] if targets else []
    return "\n".join(parts)


def _head(env: dict[str, Any]) -> str:
    rates = env["ceilings"]["flops_per_s"].items()
    flops = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in rates)
    versions = ", ".join(f"{k} {v}" for k, v in env["versions"].items() if v)
    return (
        f"{env['device']}, CUDA {env['cuda']}, {versions}, commit {str(env['commit'])[:12]}. "
        f"Measured ceilings: {env['ceilings']['bytes_per_s'] / 1e12:.3g} TB/s, {flops}. "
        "Medians, cold L2, CUDA events.\n"
    )


def _cases(cases: list[dict[str, Any]]) -> str:
    lines = [
        "| operation | input | ours, ms | / floor | error | peers: time / ours (error) |",
        "|---|---|---:|---:|---|---|",
        *map(_case, cases),
    ]
    return "\n".join(lines) + "\n"


def _case(case: dict[str, Any]) -> str:
    ours = next(row for row in case["rows"] if row["contender"] == OURS)
    what = f"| {case['operation']} | {case['case']} "
    if "median_ms" not in ours:
        return f"{what}| {ours['missing']} | | | |"
    peers = [row for row in case["rows"] if row is not ours]
    told = "<br>".join(_peer(row, ours["median_ms"]) for row in peers)
    error = f"{ours['error']:.2g} {case['error_unit']}"
    return f"{what}| {ours['median_ms']:.4g} | {ours['times_floor']:.3g} | {error} | {told} |"


def _peer(row: dict[str, Any], ours_ms: float) -> str:
    if "median_ms" not in row:
        return f"{row['contender']}: {row['missing']}"
    return f"{row['contender']}: **{row['median_ms'] / ours_ms:.3g}** ({row['error']:.2g})"


def _training(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| monitor | training step, ms | with the monitor, ms | share |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['case']} | {row['step_ms']:.4g} | {row['step_with_monitor_ms']:.4g} "
        f"| {row['share']:.2%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _targets(targets: list[dict[str, Any]]) -> str:
    lines = ["| target | measured | holds |", "|---|---:|---|"]
    for row in targets:
        if "missing" in row:
            lines.append(f"| {row['target']} | {row['missing']} | no |")
        else:
            lines.append(
                f"| {row['target']} | {row['measured']:.3g} | {'yes' if row['holds'] else 'no'} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.gpu.table RESULTS.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
