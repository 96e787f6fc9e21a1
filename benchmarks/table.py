"""The Markdown table of a benchmark run: time, error and ratio to ours, row by row.

``python -m benchmarks.table results.json`` prints it again from the stored numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OURS = "ours"


def markdown(record: dict[str, Any]) -> str:
    """The table: our time and error, then each peer's time as a multiple of ours, and its error."""
    env = record["environment"]
    lines = [
        f"{env['processor']}, {env['threads']} threads, {env['instruction_set']}; "
        f"torch {env['torch']}, NumPy {env['numpy']}, Python {env['python']}. "
        "Medians of one run; only the ratios carry over to another machine.",
        "",
        "| operation | input | ours, ms | error | peers: time / ours (error) |",
        "|---|---|---:|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["operation"], row["case"]), []).append(row)
    lines += [_line(operation, case, rows) for (operation, case), rows in groups.items()]
    return "\n".join(lines) + "\n"


def _line(operation: str, case: str, rows: list[dict[str, Any]]) -> str:
    ours = next(row for row in rows if row["contender"] == OURS)
    peers = sorted(
        (row for row in rows if row is not ours), key=lambda r: r.get("median_ms", float("inf"))
    )
    told = "<br>".join(_peer(row, ours["median_ms"]) for row in peers)
    error = f"{ours['error']:.2g} {ours['error_unit']}"
    return f"| {operation} | {case} | {ours['median_ms']:.3g} | {error} | {told} |"


def _peer(row: dict[str, Any], ours_ms: float) -> str:
    if "missing" in row:
        return f"{row['contender']}: {row['missing']}"
    ratio = row["median_ms"] / ours_ms
    return f"{row['contender']}: **{ratio:.3g}** ({row['error']:.2g})"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.table RESULTS.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text())), end="")
