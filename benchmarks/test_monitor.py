"""One step of the monitor on the demo's matrices, beside loops that compute the same numbers.

The weights are those of the demo's Transformer after some training steps, so that the spectra are
neither random nor collapsed.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named
from experiments.modular_addition.data import addition_split
from experiments.modular_addition.model import AdditionTransformer
from experiments.modular_addition.presets import PRESETS
from experiments.modular_addition.train import PAIRS, cross_entropy, make_optimizer, update

K = 100
NAMES = [
    "ours",
    "loop of torch.linalg.svd",
    "loop of torch.linalg.svdvals",
    "loop of numpy.linalg.svd",
    "ours, tracked",
]
CASES = [("ranks and all singular values",), ("and vectors, alignments, agreement",)]


@cache
def trained_model(steps: int = 100) -> AdditionTransformer:
    settings = PRESETS["demo"]
    torch.manual_seed(0)
    split = addition_split(settings.p, settings.train_fraction, 0, torch.device("cpu"))
    model = AdditionTransformer(settings)
    optimizer = make_optimizer(model, settings)
    for _ in range(steps):
        loss = cross_entropy(model(split.train_tokens), split.train_sums)
        update(optimizer, loss, settings.learning_rate)
    return model


def ranks(S: Tensor) -> list[float]:
    """Effective rank, stable rank, norms of one spectrum, in plain PyTorch."""
    p = S / S.sum()
    entropy = -(p * p.log().nan_to_num(neginf=0.0)).sum()
    return [float(entropy), float(entropy.exp()), float((S**2).sum() / S[0] ** 2), float(S.sum())]


def loop(
    matrices: dict[str, Tensor], reference: dict[str, Any] | None, solve: Any
) -> dict[str, float]:
    """What people write today: every matrix on its own; vectors where a reference asks for them."""
    found = {name: solve(A) for name, A in matrices.items()}
    table = {name: ranks(S) for name, (_, S, _) in found.items()}
    if reference is not None:
        for first, second in PAIRS:
            U, Vh = found[first][0], found[second][2]
            # Embeddings stand as (tokens, d): their right vectors feed the next layer.
            U = found[first][2].mT if first.startswith("embedding") else U
            k = min(K, U.shape[-1], Vh.shape[0])
            (U[:, :k] * Vh[:k].mT).sum(0).abs().tolist()
        for name, (U, _, Vh) in found.items():
            old = reference[name]
            ((U * old[0]).sum(0) * (Vh * old[2]).sum(1))[:K].abs().tolist()
    return {name: row[0] for name, row in table.items()}


def torch_svd(A: Tensor) -> Any:
    return torch.linalg.svd(A, full_matrices=False)


def torch_values(A: Tensor) -> Any:
    return None, torch.linalg.svdvals(A), None


def numpy_svd(A: Tensor) -> Any:
    return tuple(torch.from_numpy(x) for x in np.linalg.svd(A.numpy(), full_matrices=False))


class Tracked:
    """A monitor that goes to and fro between weights one training step apart.

    Copying them in is part of the time: 0.9 MB.
    """

    def __init__(self, **options: Any) -> None:
        self.model = copy.deepcopy(trained_model())
        self.weights = [list(trained_model(n).parameters()) for n in (100, 101)]
        self.monitor = sk.SpectralMonitor(self.model, method="tracked", **{"every": 1, **options})
        self.at = 0
        self.truth = [
            {name: ranks(torch.linalg.svdvals(A.double()))[0] for name, A in model.items()}
            for model in (_matrices(trained_model(n)) for n in (100, 101))
        ]

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        self.at = 1 - self.at
        for mine, theirs in zip(self.model.parameters(), self.weights[self.at], strict=True):
            mine.copy_(theirs)
        frame = self.monitor.step()
        assert frame is not None
        return {name: row.effective_rank for name, row in frame.matrices.items()}

    def error(self, entropies: dict[str, float]) -> float:
        truth = self.truth[self.at]
        return max(abs(entropies[name] - truth[name]) for name in entropies)


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}


def compare_monitor(case: str) -> Comparison:
    model: nn.Module = trained_model()
    matrices = _matrices(model)
    vectors = case != CASES[0][0]
    asked: dict[str, Any] = {
        "pairs": PAIRS if vectors else None,
        "reference": "init" if vectors else None,
    }
    monitor = sk.SpectralMonitor(model, method="exact", **{"every": 1, **asked})
    tracked = Tracked(**asked)
    names = [matrix.name for matrix in monitor.matrices]
    matrices = {name: matrices[name] for name in names}
    truth = {name: ranks(torch.linalg.svdvals(A.double()))[0] for name, A in matrices.items()}
    reference = {n: torch_svd(A) for n, A in matrices.items()} if vectors else None

    def ours() -> dict[str, float]:
        frame = monitor.step()
        assert frame is not None
        return {name: row.effective_rank for name, row in frame.matrices.items()}

    def error(entropies: Any) -> float:
        return max(abs(entropies[name] - truth[name]) for name in names)

    contenders = [
        Contender(NAMES[0], ours, error, limit=1e-5),
        Contender(NAMES[4], tracked.step, tracked.error, limit=1e-4),
        Contender(NAMES[1], lambda: loop(matrices, reference, torch_svd), error),
        Contender(NAMES[3], lambda: loop(matrices, reference, numpy_svd), error),
    ]
    if not vectors:
        contenders.append(Contender(NAMES[2], lambda: loop(matrices, None, torch_values), error))
    return Comparison("monitor step, 9 matrices", case, tuple(contenders), "in the entropy")


@parametrize(compare_monitor, CASES[:1], NAMES)
def test_monitor_values(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)


@parametrize(compare_monitor, CASES[1:], [NAMES[0], NAMES[1], NAMES[3], NAMES[4]])
def test_monitor_vectors(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
