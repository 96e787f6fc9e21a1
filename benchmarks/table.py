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
    """The table; the ratio is a contender's time over ours: at 3.0 we are 3 times faster."""
    env = record["environment"]
    lines = [
        f"{env['processor']}, {env['threads']} threads, {env['instruction_set']}; "
        f"torch {env['torch']}, NumPy {env['numpy']}, Python {env['python']}. "
        "Medians of one run; only the ratios carry over to another machine.",
        "",
        "| operation | input | who | median ms | time / ours | error |",
        "|---|---|---|---:|---:|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["operation"], row["case"]), []).append(row)
    for rows in groups.values():
        lines += _group(rows)
    return "\n".join(lines) + "\n"


def _group(rows: list[dict[str, Any]]) -> list[str]:
    ours = next((r["median_ms"] for r in rows if r["contender"] == OURS and "median_ms" in r), None)
    # One row per contender: ours first, then by time; the missing ones last.
    ordered = sorted(rows, key=lambda r: (r["contender"] != OURS, r.get("median_ms", float("inf"))))
    lines = []
    for row in ordered:
        head = f"| {row['operation']} | {row['case']} | {row['contender']} |"
        if "missing" in row:
            lines.append(f"{head} | | {row['missing']} |")
            continue
        ratio = f"{row['median_ms'] / ours:.1f}" if ours else ""
        error = f"{row['error']:.2g} {row['error_unit']}"
        lines.append(f"{head} {row['median_ms']:.3g} | {ratio} | {error} |")
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.table RESULTS.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text())), end="")
