"""A whole step of the monitor on a Transformer of 85 M parameters, beside loops of torch.linalg.

The matrices and how they move are those of ``benchmarks/transformer.py``. Each step is a training
step from the last; copying it into the parameters is not timed. Loops compute singular values
(torch.svd_lowrank also vectors) and nothing else; a step of the monitor ends in a frame with ranks,
norms and bounds and, where told, with alignments and agreement. The error is that of the singular
values, the largest over a matrix of each shape, relative to sigma_1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named
from benchmarks.transformer import Walk, walk

K, SETTLED = 32, 8
NOTHING_ELSE: dict[str, Any] = {"pairs": None, "reference": None}
OURS = {
    "all values": {"ours": NOTHING_ELSE},
    "all values, 100 vectors of each, their alignments and agreement": {"ours": {}},
    f"{K} triplets": {
        "ours": {"k": K, **NOTHING_ELSE},
        "ours, with alignments and agreement": {"k": K},
        "ours, tolerance 1e-2": {"k": K, "tolerance": 1e-2, **NOTHING_ELSE},
    },
}
VALUES, TRIPLETS = "loop of torch.linalg.svdvals", f"loop of torch.svd_lowrank, q = {K}"
# Exact values; leading ones are held to the peer's own error.
LIMIT = 1e-6


def monitored(at: Walk, options: dict[str, Any]) -> Callable[[], dict[str, Tensor]]:
    """A step of a monitor that has followed the walk for a while."""
    monitor = sk.SpectralMonitor(
        at.model, method="tracked", include="blocks.*", **{"every": 1, **options}
    )

    def step() -> dict[str, Tensor]:
        frame = monitor.step()
        assert frame is not None
        return {name: row.singular_values for name, row in frame.matrices.items()}

    # Where vectors are tracked, they come to rest within some steps of a flat spectrum.
    for _ in range(0 if options == NOTHING_ELSE else SETTLED):
        at.step()
        step()
    return step


def loop_of(solve: Callable[[Tensor], Tensor], at: Walk) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: solve(A) for name, A in at.model.matrices().items()}


@cache
def compare_large_model(case: str) -> Comparison:
    at = walk()
    if "triplets" in case:
        peer, solve = TRIPLETS, lambda A: torch.svd_lowrank(A, q=K)[1]
        limit = at.error({name: solve(at.states[at.at][name]) for name in at.looked_at})
    else:
        peer, solve, limit = VALUES, torch.linalg.svdvals, LIMIT
    contenders = [
        Contender(name, monitored(at, options), at.error, limit=limit, prepare=at.step)
        for name, options in OURS[case].items()
    ]
    contenders.append(Contender(peer, loop_of(solve, at), at.error, prepare=at.step))
    return Comparison("monitor step, 72 matrices", case, tuple(contenders), "σ₁")


CASES = list(OURS)


@parametrize(compare_large_model, [(CASES[0],)], [*OURS[CASES[0]], VALUES])
def test_large_model_values(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)


@parametrize(compare_large_model, [(CASES[1],)], [*OURS[CASES[1]], VALUES])
def test_large_model_vectors(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)


@parametrize(compare_large_model, [(CASES[2],)], [*OURS[CASES[2]], TRIPLETS])
def test_large_model_triplets(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
