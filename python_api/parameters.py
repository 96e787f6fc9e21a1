"""The parameters of a model, wherever they are: in a module, in a wrapper, in a mapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from python_api.matrices import ParameterInfo

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
    """The clean name of every parameter, tied ones under each of their names."""
    if not isinstance(model, nn.Module):
        return list(model)
    return [clean(name) for name, _ in model.named_parameters(remove_duplicate=False)]


def clean(name: str) -> str:
    """A qualified name without the part that ``torch.compile`` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def parameters_of(
    model: nn.Module | Mapping[str, Tensor], heads: Callable[[str], int | None]
) -> list[tuple[ParameterInfo, Callable[[], Tensor | None]]]:
    """Every parameter of a model with a getter that sees later replacements.

    A parameter that modules share (tied weights) comes once per name.
    """
    if not isinstance(model, nn.Module):
        return [
            (
                ParameterInfo(name, name.rpartition(".")[2], tensor, None, heads(name)),
                _from_mapping(model, name),
            )
            for name, tensor in model.items()
        ]
    rows = []
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = clean(f"{path}.{leaf}" if path else leaf)
            info = ParameterInfo(name, leaf, parameter, module, heads(name))
            rows.append((info, _from_module(module, leaf)))
    return rows


def _from_module(module: nn.Module, leaf: str) -> Callable[[], Tensor | None]:
    # The dictionary itself is asked at every read, so `module.weight = nn.Parameter(...)`,
    # `param.data = ...` and `load_state_dict` are all seen.
    table = module._parameters
    return lambda: table.get(leaf)


def _from_mapping(model: Mapping[str, Tensor], name: str) -> Callable[[], Tensor | None]:
    return lambda: model.get(name)
