"""Decomposed layers turned back into plain ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from spectral_monitor.decomposed.convert.kinds import (
    biases_of,
    is_attention,
    layers_of,
    move_parameters,
    weights_of,
)
from spectral_monitor.decomposed.convert.sites import (
    Site,
    as_patterns,
    find_sites,
    join,
    named,
    replace,
    select,
)
from spectral_monitor.decomposed.convert.thin import ThinLayers, share_weights, thinned
from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from spectral_monitor.decomposed.layers.plain import check_no_hooks
from spectral_monitor.decomposed.layers.tied import check_nothing_left_behind, factors_of, ties
from torch import nn


def recompose_model(
    model: nn.Module,
    patterns: str | Sequence[str] | None = None,
    *,
    form: Literal["dense", "smallest"] = "dense",
) -> nn.Module:
    """Turn decomposed layers of ``model`` into plain ones that compute the same, in place.

    Args:
        model: has decomposed layers, or is one.
        patterns: of the names of the layers that are meant; all if None.
        form: "dense": the layer as it was before it was decomposed, with the weight U Sigma Vh
            (eq. 4 of "Decomposed Learning and Grokking") and as many parameters as then;
            "smallest": of this and two thin layers, of Vh and of U Sigma, whichever has fewer. An
            attention of which a projection becomes thin stays a ``DecomposedMultiheadAttention``
            around plain projections. Thin layers are not turned back by a later call.

    Returns:
        ``model``; where it is a decomposed layer itself, the new layer. Weights train where the
        factors did, biases stay the same parameters, and layers that shared factors share
        weights. If anything raises, nothing was changed.

    Raises:
        TypeError: not a module.
        ValueError: an unknown form; a pattern that fits no decomposed layer; a layer with hooks,
            which the new one would not have; factors shared with a layer that is not meant; a
            wrapped model.

    Example:
        >>> dense = torch.nn.Linear(8, 4)
        >>> weight = dense.weight.detach().clone()
        >>> model = sk.recompose_model(sk.decompose_model(dense, {"*": None}))
        >>> torch.allclose(model.weight, weight, atol=1e-5)
        True
    """
    if form not in ("dense", "smallest"):
        raise ValueError(f"form is {form!r}; expected 'dense' or 'smallest'")
    sites = find_sites(model)
    meant = _choose(sites, patterns)
    layers = {
        join(name, path): layer
        for site in meant
        for name in site.names
        for path, layer in layers_of(site.module).items()
    }
    check_nothing_left_behind(model, factors_of(layers))
    made: dict[Site, nn.Module] = {}
    for site in meant:
        made |= _plain(site, form, sites)
    _tie(made)
    return replace(model, made)


def _choose(sites: Sequence[Site], patterns: str | Sequence[str] | None) -> list[Site]:
    """The layers that are meant, without hooks."""

    def against(site: Site) -> str | None:
        if site.wholes:
            return f"is a part of the attention {site.wholes[0]}, which is recomposed as a whole"
        return None if layers_of(site.module) else f"is a {type(site.module).__name__}"

    if patterns is None:
        meant = [site for site in sites if against(site) is None]
    else:
        meant = select("patterns", sites, as_patterns("patterns", patterns), against)
    for site in meant:
        with named(site):
            check_no_hooks(site.module)
    return meant


def _plain(site: Site, form: str, sites: Sequence[Site]) -> dict[Site, nn.Module]:
    """The plain module for a decomposed one, or for each layer of an attention."""
    module: Any = site.module
    if form == "smallest" and is_attention(module):
        by_module = {s.module: s for s in sites}
        inside = {
            by_module[layer]: _with_biases(layer, thinned(layer.smallest()))
            for layer in layers_of(module).values()
        }
        if any(isinstance(new, ThinLayers) for new in inside.values()):
            return inside
        form = "dense"
    new = thinned(module.smallest()) if form == "smallest" else module.to_dense()
    return {site: _with_biases(module, new)}


def _with_biases(old: nn.Module, new: nn.Module) -> nn.Module:
    """A plain module with the biases of the decomposed one, the same parameters."""
    biases = {own: dense for dense, own in biases_of(old).items()}
    move_parameters(old, new, {"bias": "1.bias"} if isinstance(new, ThinLayers) else biases)
    return new


def _tie(made: Mapping[Site, nn.Module]) -> None:
    """Let plain modules share the weights of those factors that they shared."""
    layers: dict[str, DecomposedLayer] = {}
    places: dict[str, tuple[nn.Module, str]] = {}
    for site, new in made.items():
        for path, layer in layers_of(site.module).items():
            label = join(site.names[0], path)
            layers[label] = layer
            places[label] = (new, weights_of(site.module)[path])
    for tie in ties(layers):
        share_weights([places[name] for name in tie])
