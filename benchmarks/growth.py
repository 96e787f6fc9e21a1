"""How the cost of a tracked update grows: with the side n, the number of matrices and k.

``python -m benchmarks.growth --out benchmarks/results/growth`` writes a .json and a .md. Square
float32 matrices move by a Gaussian step each time, small enough for one rotation (all values) or
one iteration (k of them) to bring the vectors up to date. Beside the time: operations and bytes, by
count of what the update did, and what that makes per second.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.conftest import THREADS, environment

SIDES, SIDES_OF_K = (32, 64, 128, 256, 384), (128, 384, 768, 1536)
COUNTS = (1, 4, 16)
KS = (8, 32, 100)
# Relative to the norm of the matrix.
SPEED = 1e-3
ROUNDS, SECONDS = 30, 1.0

# What one update of an n x n matrix computes: W and S, each again after a rotation of 3 n^3.
# A new solution is not counted: its operations are not those of products.
OPERATIONS = {"kept": 3, "rotated": 9, "rotated twice": 15, "rotated three times": 21}
# Columns of the block beyond k.
GUARD = 8


class Case(NamedTuple):
    """One row: ``count`` matrices n x n, all values or k."""

    n: int
    count: int
    k: int | None


def cases() -> Iterator[Case]:
    """One of the three grows at a time."""
    rows = [Case(n, 4, None) for n in SIDES]
    rows += [Case(128, count, None) for count in COUNTS]
    rows += [Case(n, 4, 32) for n in SIDES_OF_K]
    rows += [Case(768, count, 32) for count in COUNTS]
    rows += [Case(768, 4, k) for k in KS]
    yield from dict.fromkeys(rows)


def spectrum_of(n: int) -> Tensor:
    """A matrix whose values fall like those of trained layers: 1 / i^0.7."""
    torch.manual_seed(n)
    left, right = (torch.linalg.qr(torch.randn(n, n)).Q for _ in range(2))
    return (left * torch.arange(1, n + 1) ** -0.7) @ right.mT


def walk(case: Case) -> Iterator[list[Tensor]]:
    """The matrices, a step further each time, in the same memory."""
    torch.manual_seed(0)
    A = [spectrum_of(case.n).clone() for _ in range(case.count)]
    scale = [SPEED * float(a.norm()) / case.n for a in A]
    while True:
        yield A
        for a, by in zip(A, scale, strict=True):
            a += by * torch.randn(case.n, case.n)


def measure(case: Case) -> dict[str, Any]:
    """Median time of an update, and what it did."""
    tracker = sk.SpectrumTracker(case.k, reuse_buffers=True)
    matrices = walk(case)
    for _ in range(3):
        tracker.update(next(matrices))
    times, work = [], Counter[str]()
    while len(times) < 5 or (len(times) < ROUNDS and sum(times) < SECONDS):
        A = next(matrices)
        started = time.perf_counter()
        tracker.update(A)
        times.append(time.perf_counter() - started)
        work.update(tracker.work)
    seconds = statistics.median(times)
    did = work.most_common(1)[0][0]
    operations, traffic = (case.count * x for x in counted(case, did))
    return {
        **case._asdict(),
        "work": did,
        "ms": 1e3 * seconds,
        "mflop": operations / 1e6,
        "mbytes": traffic / 1e6,
        "gflops": operations / seconds / 1e9,
        "gbytes_per_s": traffic / seconds / 1e9,
    }


def counted(case: Case, did: str) -> tuple[float, float]:
    """Operations and bytes (float32) of one matrix: reads of A, vectors in and out, results."""
    n = case.n
    if case.k is None:
        products = OPERATIONS.get(did, math.nan)
        reads = 1 + (products - 3) / 6
        return products * n**3, 4 * n * n * (reads + 4)
    width = min(n, case.k + GUARD)
    # Two products with A, and about as much again on the block in float64.
    return 4 * n * n * width + 20 * n * width**2, 4 * n * (2 * n + 6 * width)


def markdown(rows: list[dict[str, Any]], told: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"{told['processor']}, {told['threads']} threads, {told['instruction_set']}. Medians; "
        "square float32 matrices, a small step at each update.",
        "",
        "| n | matrices | k | work | ms | MFLOP | MB | GFLOP/s | GB/s |",
        "|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['n']} | {r['count']} | {r['k'] or 'all'} | {r['work']} | {r['ms']:.3g} | "
        f"{r['mflop']:.3g} | {r['mbytes']:.3g} | {r['gflops']:.3g} | {r['gbytes_per_s']:.3g} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every case and write both files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    out: Path = parser.parse_args().out
    torch.set_num_threads(THREADS)
    told = environment()
    rows = [measure(case) for case in cases()]
    out.with_suffix(".json").write_text(json.dumps({"environment": told, "rows": rows}, indent=1))
    table = markdown(rows, told)
    out.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
