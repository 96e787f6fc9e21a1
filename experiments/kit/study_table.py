"""What a study prints: a row for each arm, the claims, and where everything is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.kit.claims import claims_table
from experiments.kit.machine import ELSEWHERE
from experiments.kit.run_folder import SUMMARY
from experiments.kit.table import format_table


def print_study(folder: Path, summary: Mapping[str, Any]) -> None:
    """The table of arms and the claims."""
    header = ["arm", "parameters", "steps to 1 % gap", "test accuracy", "best", "ms a step"]
    rows = [
        [
            arm["label"],
            f"{arm['parameters']:,}",
            _gap_text(arm),
            _percent(arm["final_test_accuracy"]),
            _percent(arm["best_test_accuracy"]),
            f"{arm['ms_per_step']['mean']:.2f}",
        ]
        for arm in summary["arms"]
    ]
    print(f"\n{format_table(header, rows)}\n")
    print(claims_table(summary["claims"]))
    print(f"\nMade on {'; '.join(summary['machines'])}; {ELSEWHERE}.")
    print(f"\nsummary  {(folder / SUMMARY).as_posix()}")
    print(f"figures  {(folder / 'figures').as_posix()}")


def _gap_text(arm: Mapping[str, Any]) -> str:
    closed, runs = arm["runs_that_closed_the_gap"], len(arm["seeds"])
    if not closed:
        return "not reached"
    found = arm["steps_to_gap"]
    text = f"{found['mean']:,.0f} ± {found['std']:,.0f}"
    return text if closed == runs else f"{text} ({closed} of {runs})"


def _percent(value: Mapping[str, float] | None) -> str:
    return "–" if value is None else f"{100 * value['mean']:.2f} ± {100 * value['std']:.2f} %"
