"""Decomposed layers cut to lower ranks, from their factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from spectral_monitor.decomposed.convert.budget import LayerBudget, rank_of_energy, ranks_within
from spectral_monitor.decomposed.convert.sites import (
    Site,
    as_patterns,
    assign,
    find_sites,
    named,
    select,
)
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.decomposed.layers.plain import (
    check_no_parameter_hooks,
    check_no_parametrizations,
)
from spectral_monitor.decomposed.layers.ranks import Rank, resolve_rank
from spectral_monitor.decomposed.layers.tied import (
    Tie,
    check_nothing_left_behind,
    factors_of,
    set_shared_factors,
    ties,
)
from torch import nn

from spectral_kernels.entry.results import SVD, Decomposed
from spectral_kernels.svd.op import svd


def compress_model(
    model: nn.Module,
    *,
    rank: Mapping[str, Rank] | None = None,
    energy: float | None = None,
    parameters: int | None = None,
) -> nn.Module:
    """Cut decomposed layers of ``model`` to the leading triplets of U Sigma Vh, in place.

    A dense model gets the ranks that an energy or a number of parameters asks for by
    ``decompose_model(model, {"*": None})`` before.

    The singular value decomposition of U Sigma Vh comes from its factors, and the (m, n) matrix
    is never formed. Afterwards U and Vh are orthonormal again and Sigma is diagonal, in every
    layer that was meant, also where the rank stays: what the layer computes then stays too. New
    parameters, which train where the old ones did: make a new optimizer.

    Args:
        model: has decomposed layers, or is one.
        rank: patterns of module names -> rank as for `decompose_model` (a share is one of the full
            rank, min(m, n)), at most the layer's own.
        energy: 0 < energy <= 1; each layer keeps the smallest rank that holds this share of its
            sum of sigma^2.
        parameters: how many parameters the whole model may have, Sigma's k^2 among them. From the
            triplets of all layers, the one that costs least relative energy (its share of its
            layer's sum of sigma^2) for each parameter saved is dropped until the rest fits, then
            triplets that still fit are put back. Each layer keeps one.

    Returns:
        ``model``. Layers that share their factors are cut once and go on sharing. If anything
        raises, nothing was changed.

    Raises:
        TypeError: not a module, options of wrong types.
        ValueError: not exactly one option, or one out of range; a pattern that fits no decomposed
            layer; a rank above the layer's; fewer parameters than ranks of 1 have; factors with
            NaN or Inf, parametrizations or hooks, or shared with something that is not meant; a
            wrapped model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
        >>> model = sk.decompose_model(model, {"*": None})
        >>> model = sk.compress_model(model, rank={"0": 8, "1": 0.5})
        >>> model[0].rank, model[1].rank
        (8, 4)
        >>> model = sk.compress_model(model, parameters=1000)
        >>> sum(p.numel() for p in model.parameters()) <= 1000
        True
    """
    _check_options(rank, energy, parameters)
    tied, ranks = _meant(model, rank)
    spectra = [_spectrum(tie) for tie in tied]
    if energy is not None:
        ranks = [rank_of_energy(spectrum.S, energy) for spectrum in spectra]
    elif parameters is not None:
        ranks = _fit(model, tied, spectra, parameters)
    for tie, spectrum, k in zip(tied, spectra, ranks, strict=True):
        _cut(tie, spectrum, k)
    return model


def _meant(model: nn.Module, rank: Mapping[str, Rank] | None) -> tuple[list[Tie], list[int]]:
    """The layers that are meant, those with the same factors together, and the ranks asked for."""
    sites = find_sites(model)
    decomposed = _decomposed(sites)
    ranks = {} if rank is None else _asked(sites, rank)
    layers = {site: _layer(site) for site in (decomposed if rank is None else ranks)}
    by_name = {name: layer for site, layer in layers.items() for name in site.names}
    check_nothing_left_behind(model, factors_of(by_name))
    tied = ties({site.names[0]: layer for site, layer in layers.items()})
    asked = {site.names[0]: k for site, k in ranks.items()}
    return tied, [] if rank is None else _of_ties(tied, asked)


def _check_options(
    rank: Mapping[str, Rank] | None, energy: float | None, parameters: int | None
) -> None:
    options = {"rank": rank, "energy": energy, "parameters": parameters}
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"{' and '.join(given) or 'none of rank, energy and parameters'} given; expected "
            "exactly one of rank, energy and parameters"
        )
    if energy is not None and (isinstance(energy, bool) or not isinstance(energy, Real)):
        raise TypeError(f"energy is {energy!r}; expected a number")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy is {energy!r}; expected a share 0 < energy <= 1")
    if parameters is not None and (isinstance(parameters, bool) or not isinstance(parameters, int)):
        raise TypeError(f"parameters is {parameters!r}; expected an integer")


def _decomposed(sites: Sequence[Site]) -> list[Site]:
    """The decomposed layers of a model."""
    decomposed = [site for site in sites if isinstance(site.module, DecomposedLayer)]
    if not decomposed:
        raise ValueError("the model has no decomposed layer; expected one made by decompose_model")
    return decomposed


def _layer(site: Site) -> DecomposedLayer:
    """The layer of a site, of which new factors can be made."""
    layer = site.module
    assert isinstance(layer, DecomposedLayer)
    with named(site):
        check_no_parametrizations(layer, Decomposed._fields)
        check_no_parameter_hooks(layer)
        for name, factor in layer.factors()._asdict().items():
            if not bool(torch.isfinite(factor).all()):
                raise ValueError(f"{name} holds NaN or Inf; expected finite entries")
    return layer


def _asked(sites: Sequence[Site], ranks: Mapping[str, Rank]) -> dict[Site, int]:
    """The layers that patterns of ranks mean, with the number of triplets."""
    if not isinstance(ranks, Mapping) or not ranks:
        raise ValueError(f"rank is {ranks!r}; expected a mapping of patterns to ranks")
    meant = select("rank", sites, as_patterns("rank", ranks), _reason_against)
    triplets = {}
    for site, rank in assign("rank", meant, ranks).items():
        layer = site.module
        assert isinstance(layer, DecomposedLayer)
        with named(site):
            k = triplets[site] = resolve_rank(rank, *layer.shape)
            if k > layer.rank:
                raise ValueError(
                    f"rank is {rank!r}, {k} triplets; expected at most the layer's own {layer.rank}"
                )
    return triplets


def _reason_against(site: Site) -> str | None:
    """Why a module cannot be cut, or None where it can."""
    if isinstance(site.module, DecomposedLayer):
        return None
    return f"is a {type(site.module).__name__}, not a decomposed layer"


def _of_ties(tied: Sequence[Tie], ranks: Mapping[str, int]) -> list[int]:
    """One rank for each group of layers that share their factors."""
    for tie in tied:
        first = next(iter(tie))
        for name in tie:
            if ranks[name] != ranks[first]:
                raise ValueError(
                    f"{first} and {name} share their factors (tied weights), but are to have "
                    f"ranks {ranks[first]} and {ranks[name]}; expected the same"
                )
    return [ranks[next(iter(tie))] for tie in tied]


def _fit(
    model: nn.Module, tied: Sequence[Tie], spectra: Sequence[SVD], parameters: int
) -> list[int]:
    """The ranks with which the whole model has at most so many parameters."""
    budgets = [
        LayerBudget.of(svd.S, *next(iter(tie.values())).shape)
        for tie, svd in zip(tied, spectra, strict=True)
    ]
    total = sum(parameter.numel() for parameter in model.parameters())
    # Not those of the budgets: a layer may have more triplets than its matrix has.
    factors = (next(iter(tie.values())).factors() for tie in tied)
    others = total - sum(part.numel() for three in factors for part in three)
    least = others + sum(budget.parameters(1) for budget in budgets)
    if parameters < least:
        raise ValueError(
            f"parameters is {parameters}; expected at least {least}, which the model has when "
            f"every decomposed layer has rank 1 ({others} of them are outside these layers)"
        )
    return ranks_within(budgets, parameters - others)


def _spectrum(tie: Tie) -> SVD:
    """The k triplets of U Sigma Vh, from the factors alone."""
    factors = next(iter(tie.values())).factors()
    spectrum = svd(Decomposed(*(factor.detach() for factor in factors)))
    assert isinstance(spectrum, SVD)
    return spectrum


def _cut(tie: Tie, spectrum: SVD, k: int) -> None:
    """Give the layers of a tie the k leading triplets."""
    before = next(iter(tie.values()))
    U, Vh = spectrum.U[..., :k], spectrum.Vh[..., :k, :]
    # Rounding must not fill what was zero: the row of an embedding's padding has to stay so.
    U = U.masked_fill((before.U == 0).all(-1, keepdim=True), 0)
    set_shared_factors(tie, U, torch.diag_embed(spectrum.S[..., :k]), Vh)
