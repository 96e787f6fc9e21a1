"""``python -m experiments.modular_addition.verify``: is what the monitor says true, and its price?

Trains the network twice. The first time as the experiment does, with a recorder, measuring how
long every training step, every step of the monitor, and now and then the loops of SVDs take that
it stands in for. The second time every number of every frame is compared with NumPy's float64
SVD of the same weights. Leaves ``verification.json`` and exits with 1 where a number is not as
accurate as it says; times are those of the machine, and only reported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.frame import MatrixRow, SpectralFrame
from torch import Tensor

from experiments.kit.checkpoint import seed_everything
from experiments.kit.claims import Claim, json_value
from experiments.kit.command import exit_status
from experiments.kit.options import Options
from experiments.kit.run_folder import run_folder, write_json
from experiments.kit.table import format_table
from experiments.kit.training import Training
from experiments.modular_addition.__main__ import NAME, parse
from experiments.modular_addition.data import addition_split
from experiments.modular_addition.model import AdditionTransformer
from experiments.modular_addition.presets import Settings
from experiments.modular_addition.train import make_monitor, make_optimizer, train_from

# Steps between two timings of the loops that the monitor stands in for.
PEERS_EVERY = 100

Spectrum = NDArray[np.float64]


class Timed:
    """A monitor whose steps are timed, and the training between them."""

    def __init__(self, monitor: SpectralMonitor, model: AdditionTransformer) -> None:
        self._monitor = monitor
        self._weights = [p.detach() for p in model.parameters() if p.dim() > 1]
        self._left = float("nan")
        self._calls = 0
        self.training: list[float] = []
        self.monitoring: list[float] = []
        self.peers: dict[str, list[float]] = {"torch.linalg.svd": [], "numpy.linalg.svd": []}

    def step(self, step: int, **scalars: float | Tensor) -> SpectralFrame | None:
        """The monitor's own, timed."""
        entered = time.perf_counter()
        frame = self._monitor.step(step, **scalars)
        left = time.perf_counter()
        self._calls += 1
        # The steps after a timing of peers have caches and threads that were used for something
        # else.
        if self._calls % PEERS_EVERY > 2:
            self.training.append(entered - self._left)
            self.monitoring.append(left - entered)
        if self._calls % PEERS_EVERY == 0:
            self._time_peers()
        self._left = time.perf_counter()
        return frame

    def state_dict(self) -> dict[str, Any]:
        """The monitor's."""
        return self._monitor.state_dict()

    def _time_peers(self) -> None:
        for name, solve in (("torch.linalg.svd", _torch_svd), ("numpy.linalg.svd", _numpy_svd)):
            # Threads of the one before look for work for some tens of milliseconds.
            time.sleep(0.1)
            started = time.perf_counter()
            for A in self._weights:
                solve(A)
            self.peers[name].append(time.perf_counter() - started)
        time.sleep(0.1)


def _torch_svd(A: Tensor) -> object:
    return torch.linalg.svd(A, full_matrices=False)


def _numpy_svd(A: Tensor) -> object:
    return np.linalg.svd(A.numpy(), full_matrices=False)


class Truth:
    """A recorder that compares every frame with float64, and keeps what it found."""

    METRICS = ("effective_rank", "effective_rank_exp", "stable_rank", "spectral_norm",
               "nuclear_norm", "frobenius_norm")  # fmt: skip

    def __init__(self, model: AdditionTransformer) -> None:
        self._weights = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}
        self.work: Counter[str] = Counter()
        self.steps = 0
        self.value_errors: list[float] = []
        self.value_bounds: list[float] = []
        self.rank_errors: list[float] = []
        self.rank_bounds: list[float] = []
        self.exceeded: Counter[str] = Counter()

    def write(self, frame: SpectralFrame) -> None:
        """Compare one frame."""
        self.steps += 1
        for name, row in frame.matrices.items():
            exact = np.linalg.svd(self._weights[name].double().numpy(), compute_uv=False)
            self.work[row.work] += 1
            self._compare_values(row, exact)
            self._compare_metrics(row, exact)

    def close(self) -> None:
        """Nothing is open."""

    def _compare_values(self, row: MatrixRow, exact: Spectrum) -> None:
        errors = np.abs(row.singular_values - exact)
        bounds = row.singular_value_bounds
        # NumPy's own rounding is no fault of the bound.
        self.exceeded["singular_values"] += int((errors > bounds + 1e-14 * exact[0]).sum())
        self.value_errors.append(float(errors.max() / exact[0]))
        self.value_bounds.append(float(bounds.max() / exact[0]))

    def _compare_metrics(self, row: MatrixRow, exact: Spectrum) -> None:
        truth = _metrics(exact)
        for metric in self.METRICS:
            error = abs(getattr(row, metric) - truth[metric])
            self.exceeded[metric] += error > row.bounds[metric] + 1e-13 * abs(truth[metric])
        entropy = truth["effective_rank"]
        self.rank_errors.append(abs(row.effective_rank - entropy) / entropy)
        self.rank_bounds.append(row.bounds["effective_rank"] / entropy)


def _metrics(s: Spectrum) -> dict[str, float]:
    p = s[s > 0] / s.sum()
    entropy = float(-(p * np.log(p)).sum())
    square = float((s**2).sum())
    return {
        "effective_rank": entropy,
        "effective_rank_exp": float(np.exp(entropy)),
        "stable_rank": square / float(s[0]) ** 2,
        "spectral_norm": float(s[0]),
        "nuclear_norm": float(s.sum()),
        "frobenius_norm": square**0.5,
    }


def train_with(
    options: Options[Settings], folder: Path, wrap: Callable[[AdditionTransformer], Any]
) -> Any:
    """One training run from step 0; ``wrap`` makes the monitor, or what acts as one."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = options.settings
    seed_everything(options.seed)
    split = addition_split(settings.p, settings.train_fraction, options.seed, options.device)
    model = AdditionTransformer(settings).to(options.device)
    monitor = wrap(model)
    train_from(Training(model, make_optimizer(model, settings), monitor), settings, split, folder)
    return monitor


def verify(options: Options[Settings], folder: Path) -> list[Claim]:
    """Both runs; writes ``verification.json`` and returns its claims."""
    with Recorder(folder / "timed", resume_from=-1) as recorder:
        timed: Timed = train_with(
            options,
            folder / "timed",
            lambda model: Timed(make_monitor(model, options.settings, recorder), model),
        )
    found: list[Truth] = []

    def compared(model: AdditionTransformer) -> SpectralMonitor:
        found.append(Truth(model))
        return make_monitor(model, options.settings, found[0])

    monitor: SpectralMonitor = train_with(options, folder / "compared", compared)
    price, truth = times(timed), accuracy(found[0], monitor)
    claims = [*accuracy_claims(truth), *price_claims(price)]
    content = {"preset": options.preset, "seed": options.seed, "accuracy": truth, "time": price}
    rows = [claim.to_dict() for claim in claims]
    write_json(folder / "verification.json", json_value({**content, "claims": rows}))
    return claims


def times(timed: Timed) -> dict[str, float]:
    """Milliseconds of each part, and what they are of each other."""
    training, monitoring = 1e3 * np.mean(timed.training), 1e3 * np.mean(timed.monitoring)
    loops = {name: 1e3 * float(np.median(values)) for name, values in timed.peers.items()}
    return {
        "training_ms": float(training),
        "monitor_ms": float(monitoring),
        "monitor_median_ms": 1e3 * float(np.median(timed.monitoring)),
        "share": float(monitoring / (training + monitoring)),
        **{f"{name}_ms": value for name, value in loops.items()},
        **{f"{name}_ratio": value / float(monitoring) for name, value in loops.items()},
        "torch_share": loops["torch.linalg.svd"] / (loops["torch.linalg.svd"] + float(training)),
    }


def accuracy(truth: Truth, monitor: SpectralMonitor) -> dict[str, Any]:
    """Largest and median errors and bounds over all steps and matrices."""
    return {
        "steps": truth.steps,
        "matrices": len(monitor.matrices),
        "work": dict(truth.work),
        "resolves": monitor.resolves,
        "largest_value_error": max(truth.value_errors),
        "median_value_bound": float(np.median(truth.value_bounds)),
        "largest_value_bound": max(truth.value_bounds),
        "largest_rank_error": max(truth.rank_errors),
        "median_rank_bound": float(np.median(truth.rank_bounds)),
        "largest_rank_bound": max(truth.rank_bounds),
        "bounds_exceeded": dict(truth.exceeded),
    }


def accuracy_claims(found: dict[str, Any]) -> list[Claim]:
    """What the tracker promises."""
    exceeded = sum(found["bounds_exceeded"].values())
    limits = [
        ("no number is further from float64 than its bound", "= 0", exceeded, exceeded == 0),
        *(
            (text, f"<= {limit:g}", found[name], found[name] <= limit)
            for text, name, limit in (
                ("singular values, largest error over sigma_1", "largest_value_error", 1e-3),
                ("effective rank, largest relative error", "largest_rank_error", 1e-4),
                ("singular values, median bound over sigma_1", "median_value_bound", 1e-3),
                ("effective rank, median relative bound", "median_rank_bound", 1e-3),
            )
        ),
    ]
    return [Claim(text, "float64", limit, value, holds) for text, limit, value, holds in limits]


def price_claims(found: dict[str, float]) -> list[Claim]:
    """What it may cost, on the machine at hand."""
    share = found["share"]
    by_torch, by_numpy = found["torch.linalg.svd_ratio"], found["numpy.linalg.svd_ratio"]
    return [
        Claim("monitor, share of a step", "mean of the run", "<= 0.05", share, share <= 0.05),
        Claim("times faster than torch.linalg.svd", "same run", ">= 8", by_torch, by_torch >= 8),
        Claim("times faster than numpy.linalg.svd", "same run", ">= 15", by_numpy, by_numpy >= 15),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the process's exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{NAME}.verify",
        description="Compare every number of the monitor over a whole run with float64, and its "
        "time with that of loops of SVDs.",
        allow_abbrev=False,
    )
    parser.add_argument("--preset", default="demo", help="(default: demo)")
    parser.add_argument("--seed", default="0", help="(default: 0)")
    parser.add_argument("--out", default="runs", help="where run folders are (default: runs)")
    parser.add_argument("--max-steps", help="end both runs after so many steps")
    chosen = parser.parse_args(argv)
    common = ["--preset", chosen.preset, "--seed", chosen.seed, "--out", chosen.out]
    limit = ["--max-steps", chosen.max_steps] if chosen.max_steps else []
    options = parse([*common, *limit, "--device", "cpu"])
    folder = run_folder(NAME, options).with_name(f"verify-seed{options.seed}")
    claims: list[Claim] = []
    status = exit_status(NAME, lambda: claims.extend(verify(options, folder)))
    if status:
        return status
    rows = [
        [c.claim, c.expected, f"{c.measured:.3g}", "holds" if c.holds else "FAILS"] for c in claims
    ]
    print("\n" + format_table(["claim", "expected", "measured", ""], rows))
    print(f"\n{(folder / 'verification.json').as_posix()}")
    return 0 if all(claim.holds for claim in claims if claim.source == "float64") else 1


if __name__ == "__main__":
    sys.exit(main())
