"""Tied weights: one parameter in several layers, before and after a change of the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spectral_monitor.decomposed.layers.layer import DecomposedLayer
from torch import Tensor, nn

Tie = dict[str, DecomposedLayer]
"""Name -> layer, of all layers that have the same three factors; most often a single one."""


def check_nothing_left_behind(model: nn.Module, taken: Mapping[str, nn.Parameter]) -> None:
    """Raise where a parameter that is to be replaced has a name that is not replaced.

    Args:
        model: has the parameters.
        taken: every name that is to be replaced -> its parameter.

    Raises:
        ValueError: naming both.
    """
    names = {parameter: name for name, parameter in reversed([*taken.items()])}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in names and name not in taken:
            raise ValueError(
                f"{names[parameter]} and {name} are one parameter (tied weights), of which only "
                f"the first is meant; expected patterns that fit both or neither"
            )


def factors_of(layers: Mapping[str, DecomposedLayer]) -> dict[str, nn.Parameter]:
    """Qualified name -> factor, of all ``layers`` by their names."""
    return {
        f"{name}.{leaf}".lstrip("."): factor
        for name, layer in layers.items()
        for leaf, factor in layer.factors()._asdict().items()
    }


def share_factors(tied: Iterable[Mapping[str, DecomposedLayer]]) -> None:
    """Give layers made from one weight the factors of the first of them.

    Raises:
        ValueError: their ranks or the shapes of their factors differ.
    """
    for group in tied:
        (first, layer), *others = group.items()
        for name, other in others:
            shapes = [tuple(tuple(f.shape) for f in x.factors()) for x in (layer, other)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{first} and {name} have one weight (tied weights), but their factors would "
                    f"be {_listed(shapes[0])} (rank {layer.rank}) and {_listed(shapes[1])} (rank "
                    f"{other.rank}); expected the same rank and grouping for both"
                )
        _share(list(group.values()))


def ties(layers: Mapping[str, DecomposedLayer]) -> list[Tie]:
    """The layers, those with the same factors together.

    Raises:
        ValueError: two layers that share some factors, but not all three.
    """
    groups: dict[tuple[nn.Parameter, ...], Tie] = {}
    for name, layer in layers.items():
        groups.setdefault((layer.U, layer.Sigma, layer.Vh), {})[name] = layer
    owner: dict[nn.Parameter, str] = {}
    for factors, group in groups.items():
        first = next(iter(group))
        for factor in factors:
            if owner.setdefault(factor, first) != first:
                raise ValueError(
                    f"{owner[factor]} and {first} share some of their factors, but not all; "
                    "expected all three or none"
                )
    return list(groups.values())


def set_shared_factors(tie: Tie, U: Tensor, Sigma: Tensor, Vh: Tensor) -> None:
    """Put new factors in the place of those that the layers of a tie share."""
    layers = list(tie.values())
    layers[0].set_factors(U, Sigma, Vh)
    _share(layers)


def _share(layers: Sequence[DecomposedLayer]) -> None:
    # An embedding that pads has a row of U that is exactly zero.
    source = next((x for x in layers if getattr(x, "padding_idx", None) is not None), layers[0])
    for layer in layers:
        layer.U, layer.Sigma, layer.Vh = source.U, source.Sigma, source.Vh


def _listed(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(str(shape) for shape in shapes)
