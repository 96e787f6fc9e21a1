"""One update of the 32 leading triplets of a Transformer's matrices, beside solving them anew.

The matrices of ``benchmarks/transformer.py``, a training step apart at every update. The error is
that of the 32 values, the largest over a matrix of each shape, relative to sigma_1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named
from benchmarks.transformer import walk

K, SETTLED = 32, 10
SETS = {"one layer": "blocks.11.", "12 layers": "blocks."}
NAMES = ["ours", "sk.rsvd", "loop of torch.svd_lowrank"]


@cache
def compare_leading(name: str) -> Comparison:
    at = walk()
    names = [n for n in at.states[0] if n.startswith(SETS[name])]

    def of(solve: Callable[[list[Tensor]], Any]) -> Callable[[], dict[str, Tensor]]:
        def values() -> dict[str, Tensor]:
            state = at.model.matrices()
            found = solve([state[n] for n in names])
            return {n: svd[1][:K] for n, svd in zip(names, found, strict=True)}

        return values

    generator = torch.Generator().manual_seed(1)
    tracker = sk.SpectrumTracker(K)
    runs = [
        of(tracker.update),
        of(lambda state: sk.rsvd(state, K, generator=generator)),
        of(lambda state: [torch.svd_lowrank(A, q=K) for A in state]),
    ]
    for _ in range(SETTLED):
        at.step()
        runs[0]()
    # Ours is held to the error of the peer.
    limit = at.error(runs[2]())
    contenders = tuple(
        Contender(called, run, at.error, limit=limit if called == "ours" else None, prepare=at.step)
        for called, run in zip(NAMES, runs, strict=True)
    )
    return Comparison(f"leading {K} triplets, tracked", name, contenders, "σ₁")


@parametrize(compare_leading, [(name,) for name in SETS], NAMES)
def test_leading(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
