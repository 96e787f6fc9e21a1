"""The parameters of a model, wherever they are: in a module, in a wrapper, in a mapping.

A decomposed layer, or names ``x.U``, ``x.Sigma`` and ``x.Vh`` of a mapping whose shapes chain,
has a weight besides, ``x.weight``, which is no parameter but the product of three. In a module its
name is the one from before: projections of a decomposed attention are ``attn.in_proj_weight``. A
mapping does not tell these from linear layers of that name, and has ``attn.in_proj.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from spectral_monitor.model.getters import (
    FactorsGetter,
    ModulePath,
    ParameterGetter,
    SameModuleGetter,
    without_wrappers,
)
from spectral_monitor.model.guessed_layers import GuessedLayers
from spectral_monitor.model.layer_shapes import dense_type, factored_shape
from spectral_monitor.model.natural_order import natural_order
from spectral_monitor.model.parametrized import (
    ParametrizedWeights,
    Shown,
    parametrized_in,
    parametrized_names,
)
from spectral_monitor.model.registry import Parameter, ParameterInfo
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spectral_kernels.entry.results import Decomposed

_HOOKED = re.compile(r"_(orig|v)$")
_PROJECTIONS = ("in_proj", "q_proj", "k_proj", "v_proj")


def unwrap(model: nn.Module | Mapping[str, Tensor]) -> nn.Module | Mapping[str, Tensor]:
    """The user's module inside ``torch.compile``, data-parallel wrappers and other bridges."""
    if isinstance(model, nn.Module):
        _refuse_scripted(model)
    while isinstance(model, nn.Module):
        inner = model._modules.get("_orig_mod")
        if inner is None and type(model).__name__ == "TransformerBridge":
            # No child of the bridge, whose own children are parts of this model.
            inner = vars(model).get("original_model")
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


def _refuse_scripted(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{path or 'model'} is a TorchScript module, whose layers cannot be told apart: "
                "give the module that was scripted or traced, or its state_dict(), which shares "
                "the weights"
            )


def modules_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Every module by its clean name; none where only tensors were given."""
    if not isinstance(model, nn.Module):
        return {}
    return {
        without_wrappers(path): module
        for path, module in model.named_modules(remove_duplicate=False)
    }


def parameter_names(model: nn.Module | Mapping[str, Tensor]) -> Iterator[str]:
    """The clean name of every parameter and weight, tied ones under each of their names."""
    # A generator, since the names are seldom asked for, and parameters may be many.
    for info, _ in parameters_of(model, lambda name: None, "raw"):
        yield info.name


def parameters_of(
    model: nn.Module | Mapping[str, Tensor],
    heads: Callable[[str], int | None],
    parametrized: Shown = "effective",
) -> list[Parameter]:
    """Every parameter of a model with a getter that sees later replacements.

    A parameter that modules share (tied weights) comes once per name. The weight of a decomposed
    layer comes before its factors, and so does a parametrized one, which has its layer's module
    and name, ``conv.weight``. A getter answers None once its module has left the model or is one
    of another kind, as `decompose_model` and `recompose_model` replace layers; see
    `spectral_monitor.model.getters`.
    """
    if isinstance(model, nn.Module):
        rows = _of_module(model, parametrized)
    else:
        rows = _of_mapping(model, parametrized)
    shapes = {info.name: tuple(info.tensor.shape) for info, _ in rows if not is_lazy(info.tensor)}
    guesses = GuessedLayers(shapes)
    return [(replace(info, heads=heads(info.name), guesses=guesses), get) for info, get in rows]


def _of_module(model: nn.Module, parametrized: Shown) -> list[Parameter]:
    rows: list[Parameter] = []
    modules = modules_of(model)
    factors = ParametrizedWeights(parametrized)
    for path, module in model.named_modules(remove_duplicate=False):
        parent = modules.get(without_wrappers(path).rpartition(".")[0]) if path else None
        way = ModulePath(model, path)
        weight = None
        shape = factored_shape(module)
        if shape is not None:
            weight = _weight_name(path, parent)
            get = FactorsGetter(way)
            info = _weight(weight, shape, get())
            rows.append((replace(info, module=module, parent=parent), get))
        for made in parametrized_in(module):
            raw = _by_name(module, made.raw)
            if raw is not None:
                where = without_wrappers(path)
                factors.note(where, made)
                now, read = factors.weight(where, made, raw, _raw_of(module, made.raw))
                info = replace(now, module=module, parent=parent)
                rows.append((info, SameModuleGetter(way, read)))
        for leaf, parameter in module._parameters.items():
            if parameter is not None and not factors.is_shown(_name(path, leaf)):
                name, of = _name(path, leaf), weight if leaf in Decomposed._fields else None
                info = ParameterInfo(name, leaf, parameter, module, None, parent, factor_of=of)
                rows.append((factors.marked(info), ParameterGetter(way, leaf)))
    return rows


def _raw_of(module: nn.Module, name: str) -> Callable[[], Tensor | None]:
    def raw() -> Tensor | None:
        # Where the parametrization is gone, the weight itself is there.
        leaf = name.split(".")[1] if name.startswith("parametrizations.") else _HOOKED.sub("", name)
        own = module._parameters.get(leaf)
        return _by_name(module, name) if own is None else own

    return raw


def _by_name(module: nn.Module, name: str) -> Tensor | None:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path)._parameters.get(leaf)


def _of_mapping(model: Mapping[str, Tensor], parametrized: Shown) -> list[Parameter]:
    rows: list[Parameter] = []
    weights: dict[str, str] = {}
    factors = ParametrizedWeights(parametrized)
    computed = {}
    for path, made in parametrized_names(model):
        factors.note(path, made)
        computed.update({_name(path, part): (path, made) for part in made.parts})
    shown: set[str] = set()
    for name in natural_order(list(model)) or model:
        tensor = model[name]
        if name in computed:
            path, made = computed[name]
            raw = _name(path, made.raw)
            if raw not in shown:
                shown.add(raw)
                rows.append(factors.weight(path, made, model[raw], _from_table(model, raw)))
        if factors.is_shown(name):
            continue
        path, _, leaf = name.rpartition(".")
        names = [_name(path, factor) for factor in Decomposed._fields]
        weight = _name(path, "weight")
        if leaf == "U" and weight not in model and _chain(model, names):
            weights.update(dict.fromkeys(names, weight))
            get = _all_of(model, names)
            shape = (*tensor.shape[:-1], model[names[2]].shape[-1])
            rows.append((_weight(weight, shape, get()), get))
        info = ParameterInfo(name, leaf, tensor, None, None)
        rows.append((factors.marked(info), _from_table(model, name)))
    return [
        (replace(info, factor_of=weights.get(info.name, info.factor_of)), get) for info, get in rows
    ]


def _name(path: str, leaf: str) -> str:
    return without_wrappers(f"{path}.{leaf}" if path else leaf)


def _weight_name(path: str, parent: nn.Module | None) -> str:
    """The name that the weight of a layer had before the layer was decomposed."""
    name = path.rpartition(".")[2]
    # In `nn.MultiheadAttention` these are parameters of its own, ``attn.in_proj_weight``.
    if issubclass(dense_type(parent), nn.MultiheadAttention) and name in _PROJECTIONS:
        return without_wrappers(f"{path}_weight")
    return _name(path, "weight")


def _weight(name: str, shape: tuple[int, ...], factors: Decomposed | None) -> ParameterInfo:
    assert factors is not None
    shaped = torch.empty(shape, dtype=factors.U.dtype, device="meta")
    leaf = name.rpartition(".")[2]
    return ParameterInfo(name, leaf, shaped, None, None, factors=factors)


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
    # The mapping itself is asked at every read, so replacements are seen.
    return lambda: table.get(name)


def _all_of(
    table: Mapping[str, Tensor | None], names: Sequence[str]
) -> Callable[[], Decomposed | None]:
    def factors() -> Decomposed | None:
        tensors = [table.get(name) for name in names]
        return None if any(x is None for x in tensors) else Decomposed(*tensors)

    return factors
