"""One tracked update of the demo's matrices, a training step apart, beside solving them anew.

The weights of some consecutive steps after memorisation are walked up and down: every update
is one training step from the last. The error is that of the singular values, relative to
sigma_1, over the whole walk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named
from experiments.modular_addition.data import addition_split
from experiments.modular_addition.model import AdditionTransformer
from experiments.modular_addition.presets import PRESETS
from experiments.modular_addition.train import cross_entropy, make_optimizer, update, warmed_up

BEFORE, WALK = 300, 12
NAMES = ["ours", "sk.svd", "loop of torch.linalg.svd", "loop of numpy.linalg.svd"]
CASES = [("after memorisation",)]


@cache
def walk() -> list[list[Tensor]]:
    settings = PRESETS["demo"]
    torch.manual_seed(0)
    split = addition_split(settings.p, settings.train_fraction, 0, torch.device("cpu"))
    model = AdditionTransformer(settings)
    optimizer = make_optimizer(model, settings)
    states = []
    for step in range(BEFORE + WALK):
        if step >= BEFORE:
            states.append([p.detach().clone() for p in model.parameters() if p.dim() > 1])
        loss = cross_entropy(model(split.train_tokens), split.train_sums)
        update(optimizer, loss, warmed_up(settings, step))
    return states


def compare_tracking(case: str) -> Comparison:
    states = walk()
    order = [*range(WALK), *range(WALK - 2, 0, -1)]
    truths = [[torch.linalg.svdvals(A.double()) for A in state] for state in states]

    def walking(solve: Callable[[list[Tensor]], Any]) -> Callable[[], Any]:
        steps = cycle(order)

        def step() -> Any:
            at = next(steps)
            return at, solve(states[at])

        return step

    def error_of(run: Callable[[], Any]) -> Callable[[Any], float]:
        def error(_: Any) -> float:
            worst = 0.0
            for _ in order:
                at, svds = run()
                for svd, truth in zip(svds, truths[at], strict=True):
                    found = torch.as_tensor(np.asarray(svd[1]), dtype=torch.float64)
                    worst = max(worst, float((found - truth).abs().max() / truth[0]))
            return worst

        return error

    tracker = sk.SpectrumTracker()
    solvers: list[Callable[[list[Tensor]], Any]] = [
        tracker.update,
        sk.svd,
        lambda state: [torch.linalg.svd(A, full_matrices=False) for A in state],
        lambda state: [np.linalg.svd(A.numpy(), full_matrices=False) for A in state],
    ]
    runs = [walking(solve) for solve in solvers]
    contenders = tuple(
        Contender(name, run, error_of(run), limit=tracker.tolerance if name == "ours" else None)
        for name, run in zip(NAMES, runs, strict=True)
    )
    return Comparison("tracked SVD, 9 matrices", case, contenders, "σ₁")


@parametrize(compare_tracking, CASES, NAMES)
def test_tracking(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
