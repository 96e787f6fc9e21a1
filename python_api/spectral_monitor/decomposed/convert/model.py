"""A model's layers replaced by their decomposed forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spectral_monitor.decomposed.convert.kinds import (
    biases_of,
    decomposed,
    dense_type,
    layers_of,
    move_parameters,
    weights_of,
)
from spectral_monitor.decomposed.convert.sites import (
    Site,
    as_patterns,
    assign,
    find_sites,
    join,
    named,
    replace,
    select,
)
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.decomposed.layers.plain import check_plain
from spectral_monitor.decomposed.layers.ranks import Rank
from spectral_monitor.decomposed.layers.tied import check_nothing_left_behind, share_factors
from torch import nn


def decompose_model(
    model: nn.Module, ranks: Mapping[str, Rank], *, exclude: str | Sequence[str] = ()
) -> nn.Module:
    """Replace layers of ``model`` by decomposed ones, in place, and return it.

    Each weight A becomes its best approximation of the given rank, U Sigma Vh, and all three
    factors train ("Decomposed Learning and Grokking", section 3). Training mode, device, dtype
    and requires_grad stay, biases stay the same parameters. Optimizers, ``torch.compile`` and
    data-parallel wrappers come afterwards: they keep the parameters that they were made with.

    Args:
        model: has ``nn.Linear``, ``nn.Embedding``, ``nn.Conv1d`` to ``nn.Conv3d`` or
            ``nn.MultiheadAttention`` layers, at any depth, or is one. Subclasses count where they
            have the forward of these. An attention is one layer, with all its projections.
        ranks: patterns, with ``*`` (any characters, dots among them) and ``?``, of module names
            -> rank as for ``DecomposedLinear``: an int, a share of the full rank as a float,
            "break-even", or None for all. The first that fits a name decides.
        exclude: patterns of layers to leave as they are.

    Returns:
        The model; where it is such a layer itself, the new layer.

    A weight that several layers have (tied weights, such as an embedding and the output layer) is
    decomposed once and all of them share the factors. A module that the model has under several
    names is replaced under all of them. If anything raises, nothing was changed.

    Raises:
        TypeError: not a module, a rank of a wrong type, a layer with a forward of its own.
        ValueError: a pattern that fits no layer, or none that has a decomposed form; a pattern
            that an earlier one leaves nothing; a layer with hooks or parametrizations, which the
            new one would not have, or without values (lazy, meta); a rank out of range; a weight
            that is tied to one that is not decomposed or to another rank; a wrapped model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
        >>> model = sk.decompose_model(model, {"*": 0.5}, exclude="1")
        >>> model[0].rank, type(model[1]).__name__
        (32, 'Linear')
        >>> optimizer = torch.optim.AdamW(sk.parameter_groups(model, 0.1))
    """
    sites = find_sites(model)
    chosen = _choose(sites, ranks, as_patterns("exclude", exclude))
    for site in chosen:
        dense = dense_type(site.module)
        assert dense is not None
        with named(site):
            check_plain(site.module, dense)
    weights = {
        join(name, path): site.module.get_parameter(path)
        for site in chosen
        for name in site.names
        for path in weights_of(site.module).values()
    }
    check_nothing_left_behind(model, weights)
    made = {site: _decomposed(site, rank) for site, rank in chosen.items()}
    share_factors(_tied(made))
    return replace(model, made)


def _choose(
    sites: Sequence[Site], ranks: Mapping[str, Rank], exclude: Sequence[str]
) -> dict[Site, Rank]:
    """The layers that are meant, each with its rank."""
    if not isinstance(ranks, Mapping):
        raise TypeError(
            f"ranks is a {type(ranks).__name__}; expected a mapping of patterns to ranks"
        )
    patterns = as_patterns("ranks", ranks)
    if not patterns:
        raise ValueError("ranks is empty; expected at least one pattern with its rank")
    left_out = set(select("exclude", sites, exclude, _reason_against))
    meant = select(
        "ranks",
        sites,
        patterns,
        lambda site: "is excluded" if site in left_out else _reason_against(site),
    )
    return assign("ranks", meant, ranks)


def _reason_against(site: Site) -> str | None:
    """Why a module cannot be decomposed, or None where it can."""
    if layers_of(site.module):
        return "is decomposed already (compress_model changes its rank)"
    if site.wholes:
        return f"is a part of the attention {site.wholes[0]}, which is decomposed as a whole"
    if dense_type(site.module) is None:
        return f"is a {_type_name(type(site.module))}, which has no decomposed form"
    return None


def _type_name(kind: type[nn.Module]) -> str:
    """The name of a type, with its module where torch.nn has another type of this name."""
    of_torch = getattr(nn, kind.__name__, kind)
    return kind.__name__ if of_torch is kind else f"{kind.__module__}.{kind.__name__}"


def _decomposed(site: Site, rank: Rank) -> nn.Module:
    """The decomposed form of one layer, with the bias that the layer has."""
    with named(site):
        new = decomposed(site.module, rank)
    move_parameters(site.module, new, biases_of(site.module))
    return new


def _tied(made: Mapping[Site, nn.Module]) -> list[dict[str, DecomposedLayer]]:
    """The new layers, those that were made from one weight together."""
    groups: dict[nn.Parameter, dict[str, DecomposedLayer]] = {}
    for site, module in made.items():
        layers = layers_of(module)
        for path, weight in weights_of(site.module).items():
            group = groups.setdefault(site.module.get_parameter(weight), {})
            group[join(site.names[0], path)] = layers[path]
    return list(groups.values())
