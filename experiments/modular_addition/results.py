"""What a finished run leaves behind: figures, report, ``summary.json``, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from spectral_monitor.figures.overviews import plot_run
from spectral_monitor.figures.report import write_report
from spectral_monitor.run.reader import load_run
from spectral_monitor.step.frame import pair_name

from experiments.kit.claims import claims_table, json_value
from experiments.kit.machine import ELSEWHERE, machine, save_figure
from experiments.kit.options import Options
from experiments.kit.run_folder import SUMMARY, write_json
from experiments.kit.table import format_table
from experiments.modular_addition.claims import ATTENTION, EMBEDDING_TO_ATTENTION, check_claims
from experiments.modular_addition.history import History, read_history
from experiments.modular_addition.presets import Settings

FIGURE = "figures/figure2.png"
_OF_THE_MONITOR = ("overhead", "every", "not_finite")


def write_results(options: Options[Settings], folder: Path, seconds: float) -> None:
    """Write everything that is made from the recorded steps; ``summary.json``, the mark of a
    finished run, comes last."""
    run = load_run(folder)
    (folder / FIGURE).parent.mkdir(exist_ok=True)
    figure = plot_run(run, matrix=ATTENTION, pair=EMBEDDING_TO_ATTENTION)
    summary = summarize(options, read_history(folder), seconds)
    save_figure(figure, folder / FIGURE, [summary])
    run.summary = summary
    write_report(run, title=title(options), matrix=ATTENTION, pair=EMBEDDING_TO_ATTENTION)
    write_json(folder / SUMMARY, summary)


def title(options: Options[Settings]) -> str:
    """What was run, in one line."""
    settings = options.settings
    return (
        f"Modular addition mod {settings.p}, {settings.train_fraction:.0%} of pairs, "
        f"weight decay {settings.weight_decay:g}, seed {options.seed}"
    )


def summarize(options: Options[Settings], history: History, seconds: float) -> dict[str, Any]:
    """The content of ``summary.json``. ``seconds`` is the time that training took, all told."""
    steps = int(history.steps[-1])
    share = float(np.nanmedian(history.scalars["overhead"])) if len(history.steps) > 1 else None
    summary = {
        "experiment": "modular_addition",
        "preset": options.preset,
        "overrides": options.overrides,
        "seed": options.seed,
        "machine": machine(options.device),
        "steps": steps,
        "memorized_at_step": history.memorized_at,
        "generalized_at_step": history.generalized_at,
        "seconds": round(seconds, 1),
        "ms_per_step": round(1e3 * seconds / max(1, steps), 2),
        "monitor_share_of_step": share,
        "final": final_numbers(history),
        "moments": {label: at_moment(history, i) for label, i in moments(history).items()},
        "claims": [claim.to_dict() for claim in check_claims(options.settings, history)],
    }
    cleaned: dict[str, Any] = json_value(summary)
    return cleaned


def moments(history: History) -> dict[str, int]:
    """Name -> index of the steps that the table shows: start, memorisation, and generalisation, or
    the end where there was none."""
    found = {"start": 0}
    if history.memorized_at is not None:
        found["memorisation"] = history.index(history.memorized_at)
    if history.generalized_at is not None:
        found["generalisation"] = history.index(history.generalized_at)
    else:
        found["end"] = len(history.steps) - 1
    return found


def final_numbers(history: History) -> dict[str, float]:
    """The last measured value of each scalar, and the mean of all normalised effective ranks."""
    numbers = {"mean_normalized_effective_rank": float(history.mean_rank()[-1])}
    for name, values in history.scalars.items():
        known = values[np.isfinite(values)]
        if name not in _OF_THE_MONITOR and len(known):
            numbers[name] = float(known[-1])
    return numbers


def at_moment(history: History, index: int) -> dict[str, Any]:
    """Ranks of every matrix and top alignment of every pair of layers at one step."""
    return {
        "step": int(history.steps[index]),
        "matrices": {
            name: {
                "effective_rank_exp": float(rank[index]) * history.sides[name],
                "normalized_effective_rank_exp": float(rank[index]),
                "stable_rank": float(history.stable_ranks[name][index]),
            }
            for name, rank in history.ranks.items()
        },
        "top_alignment": {
            pair_name(pair): float(history.alignment_score(pair)[index])
            for pair in history.alignment
        },
    }


def print_results(folder: Path) -> None:
    """Print the table of a finished run, its claims, and where everything is."""
    summary = json.loads((folder / SUMMARY).read_text())
    print(f"\n{outcome(summary)}\n")
    print(spectra_tables(summary["moments"]))
    if summary["claims"]:
        print(f"\n{claims_table(summary['claims'])}")
    metrics = (folder / "metrics.jsonl").as_posix()
    print(f"\nsummary  {(folder / SUMMARY).as_posix()}")
    print(f"figure   {(folder / FIGURE).as_posix()}")
    print(f"report   {(folder / 'report.html').as_posix()}")
    print(f'metrics  pandas.read_json("{metrics}", lines=True)')


def outcome(summary: dict[str, Any]) -> str:
    """One paragraph on how the run went."""
    memorized, generalized = summary["memorized_at_step"], summary["generalized_at_step"]
    final = summary["final"]
    text = f"{summary['steps']} steps in {summary['seconds']:.0f} s"
    text += f" ({summary['ms_per_step']:.1f} ms a step"
    share = summary["monitor_share_of_step"]
    text += f", {share:.0%} of it the monitor). " if share is not None else "). "
    text += (
        "Training accuracy never reached 1; "
        if memorized is None
        else f"Training accuracy reached 1 at step {memorized}, "
    )
    text += (
        f"validation accuracy ended at {final['validation_accuracy']:.3f}"
        if generalized is None
        else f"validation accuracy at step {generalized}"
    )
    text += f" ({final['unmirrored_accuracy']:.3f} on pairs without a trained mirror)."
    # A run from before machines were recorded has none.
    if "machine" in summary:
        text += f"\nMade on {summary['machine']}; {ELSEWHERE}."
    return text


def spectra_tables(shown: dict[str, Any]) -> str:
    """exp(H) and stable rank of every matrix and top alignment of every pair, at each moment."""
    header = [f"{label} @{moment['step']}" for label, moment in shown.items()]

    def table(title: str, digits: int, columns: list[dict[str, float | None]]) -> str:
        rows = [
            [name.replace(".weight", ""), *(_number(column[name], digits) for column in columns)]
            for name in columns[0]
        ]
        return format_table([title, *header], rows)

    def of_matrices(key: str) -> list[dict[str, float | None]]:
        return [
            {name: row[key] for name, row in moment["matrices"].items()}
            for moment in shown.values()
        ]

    alignment = [moment["top_alignment"] for moment in shown.values()]
    return "\n\n".join(
        [
            table("effective rank exp(H)", 1, of_matrices("effective_rank_exp")),
            table("stable rank", 1, of_matrices("stable_rank")),
            table("top alignment, mean of 10", 3, alignment),
        ]
    )


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
