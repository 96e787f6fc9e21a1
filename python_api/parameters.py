"""The parameters of a model, wherever they are: in a module, in a wrapper, in a mapping.

A decomposed layer, or names ``x.U``, ``x.Sigma`` and ``x.Vh`` of a mapping whose shapes chain,
has a weight besides, ``x.weight``, which is no parameter but the product of three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor, nn

from python_api.decomposed.layer import DecomposedLayer
from python_api.matrices import Parameter, ParameterInfo
from spectral_kernels.results import Decomposed

__all__ = ["clean", "modules_of", "parameter_names", "parameters_of", "unwrap"]


def unwrap(model: nn.Module | Mapping[str, Tensor]) -> nn.Module | Mapping[str, Tensor]:
    """The user's module inside ``torch.compile`` and data-parallel wrappers."""
    while isinstance(model, nn.Module):
        inner = model._modules.get("_orig_mod")
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if inner is None:
            break
        model = inner
    if not isinstance(model, (nn.Module, Mapping)):
        raise TypeError(
            f"model: expected a torch.nn.Module or a mapping of names to tensors, got "
            f"{type(model).__name__}"
        )
    return model


def modules_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Every module by its clean name; none where only tensors were given."""
    if not isinstance(model, nn.Module):
        return {}
    return {clean(path): module for path, module in model.named_modules(remove_duplicate=False)}


def parameter_names(model: nn.Module | Mapping[str, Tensor]) -> list[str]:
    """The clean name of every parameter and weight, tied ones under each of their names."""
    return [info.name for info, _ in parameters_of(model, lambda name: None)]


def clean(name: str) -> str:
    """A qualified name without the part that ``torch.compile`` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def parameters_of(
    model: nn.Module | Mapping[str, Tensor], heads: Callable[[str], int | None]
) -> list[Parameter]:
    """Every parameter of a model with a getter that sees later replacements.

    A parameter that modules share (tied weights) comes once per name. The weight of a decomposed
    layer comes before its factors.
    """
    if not isinstance(model, nn.Module):
        return _of_mapping(model, heads)
    rows: list[Parameter] = []
    modules = modules_of(model)
    for path, module in model.named_modules(remove_duplicate=False):
        parent = modules.get(clean(path).rpartition(".")[0]) if path else None
        weight = None
        if _has_factors(module):
            weight = _name(path, "weight")
            get = _all_of(module._parameters, Decomposed._fields)
            info = _weight(weight, module.weight_shape, get(), heads)
            rows.append((replace(info, module=module, parent=parent), get))
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                name, of = _name(path, leaf), weight if leaf in Decomposed._fields else None
                info = ParameterInfo(
                    name, leaf, parameter, module, heads(name), parent, factor_of=of
                )
                rows.append((info, _from_table(module._parameters, leaf)))
    return rows


def _of_mapping(model: Mapping[str, Tensor], heads: Callable[[str], int | None]) -> list[Parameter]:
    rows: list[Parameter] = []
    weights: dict[str, str] = {}
    for name, tensor in model.items():
        path, _, leaf = name.rpartition(".")
        names = [_name(path, factor) for factor in Decomposed._fields]
        weight = _name(path, "weight")
        if leaf == "U" and weight not in model and _chain(model, names):
            weights.update(dict.fromkeys(names, weight))
            get = _all_of(model, names)
            shape = (*tensor.shape[:-1], model[names[2]].shape[-1])
            rows.append((_weight(weight, shape, get(), heads), get))
        info = ParameterInfo(name, leaf, tensor, None, heads(name))
        rows.append((info, _from_table(model, name)))
    return [(replace(info, factor_of=weights.get(info.name)), get) for info, get in rows]


def _name(path: str, leaf: str) -> str:
    return clean(f"{path}.{leaf}" if path else leaf)


def _weight(
    name: str,
    shape: tuple[int, ...],
    factors: Decomposed | None,
    heads: Callable[[str], int | None],
) -> ParameterInfo:
    assert factors is not None
    shaped = torch.empty(shape, dtype=factors.U.dtype, device="meta")
    return ParameterInfo(name, "weight", shaped, None, heads(name), factors=factors)


def _has_factors(module: nn.Module) -> TypeGuard[DecomposedLayer]:
    """Whether a layer's factors are its own parameters: with parametrizations they are not."""
    own = module._parameters
    return isinstance(module, DecomposedLayer) and all(
        own.get(name) is not None for name in Decomposed._fields
    )


def _chain(model: Mapping[str, Tensor], names: Sequence[str]) -> bool:
    """Whether these are factors: U (..., m, k), Sigma (..., k, k) and Vh (..., k, n)."""
    if any(name not in model for name in names):
        return False
    U, Sigma, Vh = (tuple(model[name].shape) for name in names)
    if len(U) not in (2, 3) or len(Vh) != len(U):
        return False
    *batch, k = (*U[:-2], U[-1])
    return Sigma == (*batch, k, k) and Vh[:-1] == (*batch, k)


def _from_table(table: Mapping[str, Tensor | None], name: str) -> Callable[[], Tensor | None]:
    # The dictionary itself is asked at every read, so `module.weight = nn.Parameter(...)`,
    # `param.data = ...` and `load_state_dict` are all seen.
    return lambda: table.get(name)


def _all_of(
    table: Mapping[str, Tensor | None], names: Sequence[str]
) -> Callable[[], Decomposed | None]:
    def factors() -> Decomposed | None:
        found = [table.get(name) for name in names]
        return None if any(x is None for x in found) else Decomposed(*found)

    return factors
