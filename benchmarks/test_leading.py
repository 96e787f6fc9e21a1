"""One update of the 32 leading triplets of a Transformer's matrices, beside solving them anew.

The 72 matrices of 12 layers with d = 768, as they come from their initialisation with a spectrum
that falls as i^-0.5 on top of a flat one, walk up and down a few small random steps. The error is
that of the 32 values, the largest over a matrix of each shape, relative to sigma_1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named

K, WALK, SPEED, SETTLED = 32, 3, 1e-3, 10
D = 768
SETS = {
    "one layer": [(D, D)] * 4 + [(4 * D, D), (D, 4 * D)],
    "12 layers": [(D, D)] * 48 + [(4 * D, D)] * 12 + [(D, 4 * D)] * 12,
}
NAMES = ["ours", "sk.rsvd", "loop of torch.svd_lowrank"]


@cache
def walk(name: str) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def matrix(m: int, n: int) -> Tensor:
        flat = torch.randn(m, n, generator=generator) / (m**0.5 + n**0.5)
        left, right = (torch.randn(x, 64, generator=generator) / x**0.5 for x in (m, n))
        return flat + 2.0 * (left * torch.arange(1, 65) ** -0.5) @ right.T

    states = [[matrix(*shape) for shape in SETS[name]]]
    for _ in range(WALK - 1):
        scales = [SPEED * A.norm() / A.numel() ** 0.5 for A in states[-1]]
        noise = [torch.randn(A.shape, generator=generator) for A in states[-1]]
        states.append([a + s * x for a, s, x in zip(states[-1], scales, noise, strict=True)])
    return states


@cache
def compare_leading(name: str) -> Comparison:
    states = walk(name)
    order = [*range(WALK), *range(WALK - 2, 0, -1)]
    # One matrix of each shape stands for the others.
    looked_at = [SETS[name].index(shape) for shape in dict.fromkeys(SETS[name])]
    truths = [[torch.linalg.svdvals(state[i].double())[:K] for i in looked_at] for state in states]

    def walking(solve: Callable[[list[Tensor]], Any]) -> Callable[[], Any]:
        steps = cycle(order)

        def step() -> Any:
            at = next(steps)
            return at, solve(states[at])

        return step

    def error(found: Any) -> float:
        at, svds = found
        values = [svds[i][1].double()[:K] for i in looked_at]
        pairs = zip(values, truths[at], strict=True)
        return max(float((value - truth).abs().max() / truth[0]) for value, truth in pairs)

    generator = torch.Generator().manual_seed(1)
    tracker = sk.SpectrumTracker(K)
    runs = [
        walking(tracker.update),
        walking(lambda state: sk.rsvd(state, K, generator=generator)),
        walking(lambda state: [torch.svd_lowrank(A, q=K) for A in state]),
    ]
    for _ in range(SETTLED):
        runs[0]()
    contenders = tuple(
        Contender(called, run, error, limit=tracker.tolerance if called == "ours" else None)
        for called, run in zip(NAMES, runs, strict=True)
    )
    return Comparison(f"leading {K} triplets, tracked", name, contenders, "σ₁")


@parametrize(compare_leading, [(name,) for name in SETS], NAMES)
def test_leading(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
