"""A step of the monitor on decomposed layers, beside one on the same weights put together.

A Transformer of two layers, d = 128, all of whose matrices are trained as U Sigma Vh. What is timed
has the same numbers to find: k singular values of each of the 14 matrices, alignments of
neighbours, agreement with the first weights.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import spectral_kernels as sk
from benchmarks.comparison import Comparison, Contender, parametrize, run_named
from benchmarks.transformer import Transformer

STEPS, STATES, LEARNING_RATE, TOKENS = 30, 2, 1e-3, 99
NAMES = ["ours", "ours, of the product"]
CASES = [(1.0,), (0.25,)]


@cache
def trained(share: float) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A model with matrices of this share of the full rank, and its factors on two steps."""
    torch.manual_seed(0)
    model: nn.Module = sk.decompose_model(Transformer(2, 128, 4, TOKENS), {"*": share})
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    states = []
    for step in range(STEPS + STATES - 1):
        tokens = torch.randint(TOKENS, (64, 4))
        loss = cross_entropy(model(tokens)[:, -1], tokens.sum(dim=1) % TOKENS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= STEPS - 1:
            states.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return model.requires_grad_(False), states


class Walk:
    """A monitor that goes to and fro between the two steps."""

    def __init__(self, share: float, *, whole: bool) -> None:
        model, self.states = trained(share)
        self.model = copy.deepcopy(model)
        if whole:
            self.states = [_products(state) for state in self.states]
            self.model = Transformer(2, 128, 4, TOKENS).requires_grad_(False)
        self.at = 0
        self.copy()
        self.monitor = sk.SpectralMonitor(self.model, every=1, heads=4)
        self.truths = [_truths(state) for state in trained(share)[1]]

    def copy(self) -> None:
        """Write the other step's weights where these are."""
        self.at = 1 - self.at
        self.model.load_state_dict(self.states[self.at])

    def step(self) -> Any:
        return self.monitor.step()

    def error(self, frame: Any) -> float:
        """Of the leading half of the values, relative to sigma_1."""
        worst = 0.0
        for name, S in self.truths[self.at].items():
            few = S[: max(1, len(S) // 2)]
            found = torch.from_numpy(frame.matrices[name].singular_values[: len(few)]).double()
            worst = max(worst, float((found - few).abs().max() / few[0]))
        return worst


def _products(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the dense model."""
    layers = {name.removesuffix(".U") for name in state if name.endswith(".U")}
    rest = {n: x for n, x in state.items() if n.rpartition(".")[0] not in layers}
    return rest | {f"{name}.weight": _product(state, name) for name in layers}


def _product(state: dict[str, Tensor], layer: str) -> Tensor:
    return sk.recompose(*(state[f"{layer}.{factor}"] for factor in ("U", "Sigma", "Vh")))


def _truths(state: dict[str, Tensor]) -> dict[str, Tensor]:
    exact = {name: x.double() for name, x in state.items()}
    layers = [name.removesuffix(".U") for name in state if name.endswith(".U")]
    return {
        f"{name}.weight": torch.linalg.svdvals(_product(exact, name))[: len(state[f"{name}.Sigma"])]
        for name in layers
    }


def compare_decomposed(share: float) -> Comparison:
    walks = [Walk(share, whole=whole) for whole in (False, True)]
    contenders = tuple(
        # The tolerance of the tracker.
        Contender(name, walk.step, walk.error, limit=1e-3, prepare=walk.copy)
        for name, walk in zip(NAMES, walks, strict=True)
    )
    return Comparison("monitor step, 14 matrices", f"rank {share:.0%}", contenders, "σ₁")


@parametrize(compare_decomposed, CASES, NAMES)
def test_decomposed_monitor(benchmark: Any, make: Any, arguments: Any, name: str) -> None:
    run_named(benchmark, make, arguments, name)
