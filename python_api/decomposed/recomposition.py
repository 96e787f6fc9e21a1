"""Decomposed layers turned back into plain ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from python_api.decomposed.kinds import biases_of, layers_of, move_parameters, weights_of
from python_api.decomposed.layer import DecomposedLayer
from python_api.decomposed.plain import check_no_hooks
from python_api.decomposed.sites import Site, as_patterns, find_sites, join, named, replace, select
from python_api.decomposed.thin import ThinLayers, share_weights, thinned
from python_api.decomposed.tied import check_nothing_left_behind, factors_of, ties

__all__ = ["recompose_model"]


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
            "smallest": of this and two thin layers, of Vh and of U Sigma, whichever has fewer.

    Returns:
        ``model``; where it is a decomposed layer itself, the new layer. Weights train where the
        factors did, biases stay the same parameters, and layers that shared factors share
        weights. If anything raises, nothing was changed.

    Raises:
        TypeError: not a module.
        ValueError: an unknown form; a pattern that fits no decomposed layer; a layer with hooks,
            which the new one would not have; factors shared with a layer that is not meant; a
            wrapped model.
    """
    if form not in ("dense", "smallest"):
        raise ValueError(f"form is {form!r}; expected 'dense' or 'smallest'")
    meant = _choose(find_sites(model), patterns)
    layers = {
        join(name, path): layer
        for site in meant
        for name in site.names
        for path, layer in layers_of(site.module).items()
    }
    check_nothing_left_behind(model, factors_of(layers))
    made = {site: _plain(site, form) for site in meant}
    _tie(made)
    return replace(model, made)


def _choose(sites: Sequence[Site], patterns: str | Sequence[str] | None) -> list[Site]:
    """The layers that are meant, without hooks."""

    def against(site: Site) -> str | None:
        return None if layers_of(site.module) else f"is a {type(site.module).__name__}"

    if patterns is None:
        meant = [site for site in sites if against(site) is None]
    else:
        meant = select("patterns", sites, as_patterns("patterns", patterns), against)
    for site in meant:
        with named(site):
            check_no_hooks(site.module)
    return meant


def _plain(site: Site, form: str) -> nn.Module:
    """The plain module for a decomposed one, with the biases of that one."""
    old: Any = site.module
    new: nn.Module = thinned(old.smallest()) if form == "smallest" else old.to_dense()
    biases = {own: dense for dense, own in biases_of(old).items()}
    if isinstance(new, ThinLayers):
        biases = {"bias": "1.bias"}
    move_parameters(old, new, biases)
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
