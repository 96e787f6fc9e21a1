"""Decomposed layers cut to lower ranks from their factors."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from spectral_monitor.decomposed.convert.budget import LayerBudget, rank_of_energy, ranks_within
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import spectral_kernels as sk
from tests.support.decomposed_models import LanguageModel, Mixed, count, error, mlp, state

# float32. Measured over all models below: at most 5.6e-7 with the compiled kernels, which work in
# float64, and 2.9e-6 with plain torch, whose small SVDs are LAPACK's in float32.
SAME = 1e-5
# ||U^T U - I||. Measured: at most 1.2e-6, with plain torch.
ORTHONORMAL = 4e-6


def trained(model: nn.Module, ranks: Any) -> nn.Module:
    """Factors as after training: not orthonormal, no diagonal core."""
    sk.decompose_model(model, ranks)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def layers(model: nn.Module) -> dict[str, DecomposedLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, DecomposedLayer)}


def ranks(model: nn.Module) -> dict[str, int]:
    return {name: layer.rank for name, layer in layers(model).items()}


def product(layer: DecomposedLayer) -> np.ndarray[Any, Any]:
    """U Sigma Vh in float64."""
    U, Sigma, Vh = (factor.detach().double().numpy() for factor in layer.factors())
    result: np.ndarray[Any, Any] = U @ Sigma @ Vh
    return result


def best(A: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """The best approximation of rank k, by NumPy in float64."""
    U, S, Vh = np.linalg.svd(A, full_matrices=False)
    result: np.ndarray[Any, Any] = (U[..., :k] * S[..., None, :k]) @ Vh[..., :k, :]
    return result


def test_ranks_give_the_best_approximations() -> None:
    model = trained(Mixed(), {"*": 1.0})
    before = {name: product(layer) for name, layer in layers(model).items()}
    sk.compress_model(model, rank={"attn": 5, "blocks.0.*": 0.25, "*": 3})
    expected = {"attn.in_proj": 5, "attn.out_proj": 5, "blocks.0.0": 4, "blocks.0.2": 4}
    assert ranks(model) == {name: expected.get(name, 3) for name in before}
    for name, layer in layers(model).items():
        wanted = best(before[name], layer.rank)
        assert np.abs(product(layer) - wanted).max() < SAME * np.abs(wanted).max(), name


def test_the_same_rank_keeps_the_model_and_makes_a_decomposition_of_it() -> None:
    model, x = trained(Mixed(), {"by_name.*": 4, "*": 6}), torch.randn(2, 4, 5)
    y = model(x)
    assert all(d.U > 0.1 and d.Sigma > 0.1 for d in sk.decomposition_drift(model).values())
    sk.compress_model(model, energy=1.0)
    assert sorted(set(ranks(model).values())) == [4, 6]
    assert error(model(x), y) < SAME
    for drift in sk.decomposition_drift(model).values():
        assert max(drift.U, drift.Vh) < ORTHONORMAL
        assert drift.Sigma == 0


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_energy_keeps_the_smallest_rank_with_that_share(energy: float) -> None:
    model = trained(Mixed(), {"*": 1.0})
    spectra = {n: np.linalg.svd(product(x), compute_uv=False) for n, x in layers(model).items()}
    sk.compress_model(model, energy=energy)
    for name, k in ranks(model).items():
        kept = np.cumsum(spectra[name] ** 2) / np.sum(spectra[name] ** 2)
        assert kept[k - 1] >= energy - 1e-12
        assert k == 1 or kept[k - 2] < energy


def test_groups_of_a_convolution_keep_one_rank_by_their_energy_together() -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2))
    with torch.no_grad():
        model[0].weight[:3] *= 100
    trained(model, {"*": 1.0})
    values = np.linalg.svd(product(layers(model)["0"]), compute_uv=False) ** 2
    kept = np.cumsum(values.sum(0)) / values.sum()
    sk.compress_model(model, energy=0.95)
    assert model[0].U.shape == (2, 3, 1 + int((kept < 0.95).sum()))


def test_parameters_are_as_many_as_asked_or_a_few_less() -> None:
    model = trained(mlp(40, 30, 20, 10), {"*": 1.0})
    for parameters in range(count(model), 400, -97):
        cut = sk.compress_model(copy.deepcopy(model), parameters=parameters)
        assert count(cut) <= parameters
        # No single triplet fits into what is left over.
        for name, layer in layers(cut).items():
            k, (m, n) = layer.rank, layer.shape
            full = layers(model)[name].rank
            assert k == full or count(cut) + 2 * k + 1 + m + n > parameters


def test_more_parameters_than_there_are_keep_every_triplet() -> None:
    model = trained(mlp(6, 5, 4), {"*": 3})
    assert set(ranks(sk.compress_model(model, parameters=10**9)).values()) == {3}


def test_parameters_count_shared_factors_once() -> None:
    model = trained(LanguageModel(), {"*": 6})
    sk.compress_model(model, parameters=400)
    assert count(model) <= 400
    assert model.embed.U is model.head.U
    assert model.embed.Sigma is model.head.Sigma
    k = model.hidden.rank
    assert count(model) == model.embed.rank * (model.embed.rank + 42) + k * (k + 24) + 12 + 30


def lost(budgets: list[LayerBudget], kept: tuple[int, ...] | list[int]) -> float:
    return sum(sum(b.energies[k:]) for b, k in zip(budgets, kept, strict=True))


def size(budgets: list[LayerBudget], kept: tuple[int, ...] | list[int]) -> int:
    return sum(b.parameters(k) for b, k in zip(budgets, kept, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_of_ranks_against_all_others(seed: int) -> None:
    """Prices rise within a layer, so what has been dropped is never a bad bargain: of all choices
    with at most as many parameters as there were before triplets were put back, none loses less.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(9, 7), (20, 5), (6, 6)]
    budgets = [
        LayerBudget.of(torch.rand(4, generator=generator).sort(descending=True).values, m, n)
        for m, n in shapes
    ]
    choices = list(itertools.product(range(1, 5), repeat=3))
    for parameters in range(size(budgets, [1, 1, 1]), size(budgets, [4, 4, 4]) + 1):
        chosen = ranks_within(budgets, parameters)
        used = size(budgets, chosen)
        assert used <= parameters
        optimum = min(lost(budgets, c) for c in choices if size(budgets, c) <= parameters)
        # The greedy choice is the optimum but for one triplet, the last that was dropped.
        dearest = max(b.energies[0] for b in budgets)
        assert optimum <= lost(budgets, chosen) + 1e-12
        assert lost(budgets, chosen) <= optimum + dearest
    # At the totals that dropping passes through, it is the optimum itself.
    for price in sorted(b.price(k) for b in budgets for k in range(2, 5)):
        kept = [1 + sum(b.price(k) > price for k in range(2, 5)) for b in budgets]
        within = [c for c in choices if size(budgets, c) <= size(budgets, kept)]
        assert lost(budgets, kept) <= min(lost(budgets, c) for c in within) + 1e-12
        assert ranks_within(budgets, size(budgets, kept)) == kept


def test_scale_does_not_matter_and_zeros_go_first() -> None:
    S = torch.tensor([3.0, 2.0, 1.0])
    for scale in (1e-30, 1.0, 1e30):
        assert rank_of_energy(S * scale, 0.9) == 2
    assert rank_of_energy(torch.zeros(3), 0.9) == 1
    budgets = [LayerBudget.of(S, 5, 5), LayerBudget.of(torch.zeros(3), 5, 5)]
    assert ranks_within(budgets, 39 + 11) == [3, 1]


def test_a_padded_row_stays_zero() -> None:
    model = nn.Sequential(nn.Embedding(9, 6, padding_idx=4))
    sk.decompose_model(model, {"*": 1.0})
    with torch.no_grad():
        model[0].Sigma += 0.1 * torch.randn(6, 6)
    sk.compress_model(model, rank={"*": 3})
    assert torch.equal(model[0](torch.tensor([4])), torch.zeros(1, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_frozen_factors_stay(dtype: torch.dtype) -> None:
    model = mlp(6, 5, 4).to(dtype)
    model[0].weight.requires_grad_(False)
    sk.decompose_model(model, {"*": 1.0})
    sk.compress_model(model, rank={"*": 2})
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert [p.requires_grad for p in model[0].factors()] == [False] * 3
    assert [p.requires_grad for p in model[2].factors()] == [True] * 3


def test_a_large_matrix_is_never_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(sk.DecomposedLinear(70, 60, rank=3, bias=False))
    shapes = set()
    tensors = torch.overrides.TorchFunctionMode

    class Seen(tensors):
        def __torch_function__(self, f: Any, t: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = f(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple) else (result,):
                if isinstance(x, Tensor):
                    shapes.add(tuple(x.shape[-2:]))
            return result

    with Seen():
        sk.compress_model(model, energy=0.5)
    assert (60, 3) in shapes
    assert not {(60, 70), (70, 60)} & shapes


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "none of rank, energy and parameters given; expected exactly one"),
    ({"energy": 0.5, "parameters": 900}, "energy and parameters given; expected exactly one"),
    ({"energy": 0.0}, "energy is 0.0; expected a share 0 < energy <= 1"),
    ({"energy": 1.5}, "energy is 1.5; expected a share"),
    ({"parameters": 109}, "parameters is 109; expected at least 110, .*rank 1 .42 of them"),
    ({"rank": {"head": 1}}, "head.U and embed.U are one parameter"),
    ({"rank": {"head": 1, "embed": 2}}, "share their factors .*ranks 2 and 1; expected the same"),
    ({"rank": {"hidden": 5}}, "hidden: rank is 5, 5 triplets; expected at most the layer's own 4"),
    ({"rank": {"hidde": 1}}, "rank: the pattern 'hidde' fits no module; near names: hidden"),
    ({"rank": {"*": 1, "hidden": 2}}, "'hidden' is never used"),
    ({"rank": {}}, "rank is {}; expected a mapping"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refusals_say_why_and_change_nothing(options: dict[str, Any], message: str) -> None:
    model = trained(LanguageModel(), {"*": 4})
    before = state(model)
    with pytest.raises(ValueError, match=message):
        sk.compress_model(model, **options)
    after = state(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_hooks_of_layers_stay_and_those_of_factors_are_refused() -> None:
    model, calls = sk.decompose_model(mlp(4, 4, 4), {"*": 3}), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    sk.compress_model(model, rank={"*": 2})
    model(torch.ones(1, 4))
    assert calls == [1]
    model[2].U.register_hook(lambda gradient: gradient)
    with pytest.raises(ValueError, match="2: U of the layer has hooks"):
        sk.compress_model(model, energy=0.5)
    sk.compress_model(model, rank={"0": 1})
    assert (model[0].rank, model[2].rank) == (1, 2)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="no decomposed layer; expected one made by decompose_mo"):
        sk.compress_model(mlp(3, 3), energy=0.9)
    model = sk.decompose_model(mlp(3, 3), {"*": 2})
    with pytest.raises(TypeError, match=r"parameters is 9.5; expected an integer"):
        sk.compress_model(model, parameters=9.5)
    with pytest.raises(ValueError, match="wrapped in OptimizedModule"):
        sk.compress_model(torch.compile(model), energy=0.9)
    with pytest.raises(TypeError, match=r"energy is '0.9'; expected a number"):
        sk.compress_model(model, energy="0.9")
    mixed = nn.Sequential(*model, nn.Linear(3, 3))
    with pytest.raises(ValueError, match="1 is a Linear, not a decomposed layer"):
        sk.compress_model(mixed, rank={"1": 2})
    model[0].Sigma.data[0, 1] = torch.inf
    with pytest.raises(ValueError, match="0: Sigma holds NaN or Inf"):
        sk.compress_model(model, energy=0.9)


def test_each_factor_trains_as_before() -> None:
    model = sk.decompose_model(mlp(4, 4), {"*": 3})
    for factor in (model[0].U, model[0].Vh):
        factor.requires_grad_(False)
    sk.compress_model(model, energy=0.9)
    trains = [factor.requires_grad for factor in model[0].factors()]
    assert trains == [False, True, False]
    # What one factor trains moves the weight.
    assert model[0].to_linear().weight.requires_grad
    model[0].Sigma.requires_grad_(False)
    assert not model[0].to_linear().weight.requires_grad


def test_a_budget_counts_factors_of_more_triplets_than_the_matrix_has() -> None:
    layer = sk.DecomposedLinear(4, 3, bias=False)
    layer.set_factors(torch.randn(3, 7), torch.randn(7, 7), torch.randn(7, 4))
    sk.compress_model(layer, parameters=3 + 1 + 4)
    assert layer.rank == 1


def test_parametrized_factors_are_refused_and_nothing_changes() -> None:
    model = sk.decompose_model(mlp(4, 4, 4), {"*": 3})
    parametrizations.orthogonal(model[2], "U")
    with pytest.raises(ValueError, match=r"2: the layer, a .*, has parametrizations"):
        sk.compress_model(model, rank={"*": 2})
    with pytest.raises(ValueError, match="has parametrizations"):
        model[2].set_factors(torch.ones(4, 1), torch.ones(1, 1), torch.ones(1, 4))
    assert model[0].rank == 3
    # Those of a bias stay.
    parametrize.register_parametrization(model[0], "bias", nn.Identity())
    sk.compress_model(model, rank={"0": 2})
    assert model[0].rank == 2
