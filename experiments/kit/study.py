"""A study: every arm with every seed, whatever is missing is trained, then all is compared.

An experiment's ``study.py`` says which arms there are and what is claimed of them; the rest is
here. Runs are processes of the experiment's own command with one thread each, so a study that
is interrupted goes on where its runs were.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.kit.arms import Arm, Outcome
from experiments.kit.claims import Claim, json_value
from experiments.kit.figures import Figures
from experiments.kit.history import read_history
from experiments.kit.machine import machines_of, save_figure
from experiments.kit.options import Options
from experiments.kit.run_folder import (
    SUMMARY,
    changed_settings,
    is_finished,
    run_folder,
    with_data,
    write_json,
)
from experiments.kit.study_table import print_study

ROOT = Path(__file__).parents[2]
LOG = "log.txt"


@dataclass(frozen=True)
class Study:
    """What is compared, and where its runs are.

    ``parse`` reads a command line of the experiment ``name``, as its ``__main__`` does.
    """

    name: str
    parse: Callable[[Sequence[str]], Options[Any]]
    preset: str
    arms: Sequence[Arm]
    seeds: Sequence[int]
    out: Path = Path("runs")
    data: Path | None = None
    device: str = "auto"
    jobs: int = 2

    @property
    def folder(self) -> Path:
        """Where the study's own files go."""
        return self.out / self.name / with_data(f"study-{self.preset}", self.data)

    def argv(self, arm: Arm, seed: int) -> list[str]:
        """The options of one run."""
        words = ["--preset", self.preset, "--seed", str(seed), "--out", str(self.out)]
        words += ["--device", self.device]
        if self.data is not None:
            words += ["--data", str(self.data)]
        return [*words, *arm.argv()]

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """Where one run is, or will be."""
        return run_folder(self.name, self.parse(self.argv(arm, seed)))

    def is_finished(self, arm: Arm, seed: int) -> bool:
        """Whether one run has ended there, with the settings and the data of this study."""
        options = self.parse(self.argv(arm, seed))
        finished = is_finished(run_folder(self.name, options))
        return finished and not changed_settings(self.name, options)


def study_parser(name: str, description: str, presets: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every study has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}.study",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset", choices=presets, default=presets[0], help="(default: %(default)s)"
    )
    parser.add_argument("--seeds", type=_count, metavar="N", help="seeds 0 to N - 1 of every arm")
    parser.add_argument("--jobs", type=_count, default=2, metavar="N",
                        help="runs at a time, each with one thread (default: 2)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR",
                        help="where run folders are (default: runs)")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="folder of data sets, for the experiments that read one")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N] (default: auto)")
    return parser


def run_study(
    study: Study,
    claims: Callable[[Mapping[str, Outcome]], list[Claim]],
    figures: Callable[[Mapping[str, Outcome]], Figures],
) -> int:
    """Train what is missing, compare what is there, print the table; the process's exit status.

    Leaves ``summary.json`` (arms, claims, runs that failed) and ``figures/*.png`` in the study's
    folder. An arm with a run that failed is compared by the runs it has, and left out where it
    has none; the status is 1 then.

    Args:
        study: which arms and seeds.
        claims: arms by label -> the claims that can be tested on them.
        figures: arms by label -> name -> figure.
    """
    failed = run_missing(study)
    outcomes = read_outcomes(study)
    if outcomes:
        runs = [run.summary for outcome in outcomes.values() for run in outcome.runs.values()]
        summary = {
            "experiment": study.name,
            "preset": study.preset,
            "seeds": list(study.seeds),
            "machines": machines_of(runs),
            "arms": [outcome.summary() for outcome in outcomes.values()],
            "failed": failed,
            "claims": [claim.to_dict() for claim in claims(outcomes)],
        }
        # Figures last: what was measured is not to wait for a picture that cannot be drawn.
        (study.folder / "figures").mkdir(parents=True, exist_ok=True)
        write_json(study.folder / SUMMARY, json_value(summary))
        print_study(study.folder, summary)
        for name, figure in figures(outcomes).items():
            save_figure(figure, study.folder / "figures" / f"{name}.png", runs)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def run_missing(study: Study) -> list[str]:
    """Train every run that is not finished, ``study.jobs`` at a time; the names of those that
    failed. What a run prints is in ``seed<N>.log.txt`` beside its folder."""
    missing = [
        (arm, seed)
        for seed in study.seeds
        for arm in study.arms
        if not study.is_finished(arm, seed)
    ]
    if missing:
        print(f"{len(missing)} of {len(study.arms) * len(study.seeds)} runs to train", flush=True)
    with ThreadPoolExecutor(study.jobs) as pool:
        try:
            results = list(pool.map(lambda run: _run_one(study, *run), missing))
        except KeyboardInterrupt:
            # The runs were interrupted with us; those that wait are not to start.
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [name for name in results if name is not None]


def read_outcomes(study: Study) -> dict[str, Outcome]:
    """Label -> the finished runs of each arm that has any."""
    outcomes = {}
    for arm in study.arms:
        finished = [seed for seed in study.seeds if study.is_finished(arm, seed)]
        runs = {seed: read_history(study.run_folder(arm, seed)) for seed in finished}
        if runs:
            outcomes[arm.label] = Outcome(arm, runs)
    return outcomes


def _run_one(study: Study, arm: Arm, seed: int) -> str | None:
    """One run in a process of its own; its name if it failed."""
    name = f"{arm.label}, seed {seed}"
    folder = study.run_folder(arm, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"experiments.{study.name}", *study.argv(arm, seed)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    # Beside the folder, not in it: the run may delete and make it.
    log = folder.with_name(f"{folder.name}.{LOG}")
    with log.open("w") as file:
        status = subprocess.run(command, stdout=file, stderr=file, env=environment).returncode
    if status == 0:
        print(f"{name}: {_told(folder)}", flush=True)
        return None
    print(f"{name}: exit status {status}, see {log.as_posix()}", flush=True)
    return name


def _told(folder: Path) -> str:
    summary = json.loads((folder / SUMMARY).read_text())
    gap = summary["gap_closed_at_step"]
    closed = "gap not closed" if gap is None else f"gap closed at step {gap}"
    return f"{closed}, {summary['steps']} steps in {summary['seconds']:.0f} s"


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected at least 1")
    return count


# argparse names the type in its message: "invalid int value: 'x'".
_count.__name__ = "int"
