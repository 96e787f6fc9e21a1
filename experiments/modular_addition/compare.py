"""``python -m experiments.modular_addition.compare``: with and without weight decay, side by side.

Trains whichever of the two runs is missing, then draws both in one figure, as rows of the papers'
Figure 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectral_monitor.figures.overviews import plot_runs
from spectral_monitor.figures.report import write_report
from spectral_monitor.run.reader import load_run

from experiments.kit.command import exit_status
from experiments.kit.machine import save_figure
from experiments.kit.run_folder import CONFIG, SUMMARY, write_json
from experiments.modular_addition.__main__ import NAME, parse, run
from experiments.modular_addition.claims import ATTENTION, EMBEDDING_TO_ATTENTION, check_control
from experiments.modular_addition.history import History, read_history
from experiments.modular_addition.presets import Settings

# One seed: the same pairs and the same start, so that decay is all that differs.
ROWS = {
    "weight decay 1": ["--seed", "0"],
    "no weight decay": ["--seed", "0", "--weight-decay", "0"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{NAME}.compare",
        description="The same network with and without weight decay, in one figure.",
        allow_abbrev=False,
    )
    parser.add_argument("--preset", default="demo", help="(default: demo)")
    parser.add_argument("--out", default="runs", help="where run folders are (default: runs)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N] (default: auto)")
    chosen = parser.parse_args(argv)
    common = ["--preset", chosen.preset, "--out", chosen.out, "--device", chosen.device]
    folders: dict[str, Path] = {}

    def train_missing() -> None:
        folders.update({label: run(parse([*common, *extra])) for label, extra in ROWS.items()})

    status = exit_status(NAME, train_missing)
    if status == 0:
        compare(folders, Path(chosen.out) / NAME / f"compare-{chosen.preset}")
    return status


def compare(folders: dict[str, Path], out: Path) -> None:
    """One figure of finished runs, a row for each, and all their claims in one ``summary.json``."""
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    runs = {label: load_run(folder) for label, folder in folders.items()}
    figure = plot_runs(runs, matrix=ATTENTION, pair=EMBEDDING_TO_ATTENTION)
    summaries = {
        label: json.loads((folder / SUMMARY).read_text()) for label, folder in folders.items()
    }
    save_figure(figure, figures / "compare.png", summaries.values())
    claims = [
        {"run": label, **claim}
        for label, summary in summaries.items()
        for claim in summary["claims"]
    ]
    claims += control_claims(folders)
    write_json(out / SUMMARY, {"runs": summaries, "claims": claims})

    (first, run), *others = runs.items()
    run.summary = {"claims": [{**row, "claim": f"{row['run']}: {row['claim']}"} for row in claims]}
    write_report(
        run,
        out / "report.html",
        title=f"Modular addition: {first}",
        matrix=ATTENTION,
        pair=EMBEDDING_TO_ATTENTION,
        others=dict(others),
    )
    print(f"\ncomparison  {(figures / 'compare.png').as_posix()}")
    print(f"            {(out / 'report.html').as_posix()}")


def control_claims(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of the claims about a run with decay and one without, of the same seed and settings."""
    read: list[tuple[str, int, Settings, History]] = []
    for label, folder in folders.items():
        config = json.loads((folder / CONFIG).read_text())
        settings = Settings(**config["settings"])
        read.append((label, config["seed"], settings, read_history(folder)))
    return [
        {"run": f"{first} and {second}", **claim.to_dict()}
        for first, seed, settings, history in read
        for second, other_seed, others, control in read
        if seed == other_seed
        for claim in check_control((settings, history), (others, control))
    ]


if __name__ == "__main__":
    sys.exit(main())
