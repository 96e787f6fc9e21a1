"""Refusals: what a layer has that the layer in its place would not have."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def check_source(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Raise where a dense layer cannot be decomposed.

    Raises:
        TypeError: not of this kind, or a subclass with a forward of its own.
        ValueError: hooks or parametrizations, which a new layer would lose; parameters without
            values (meta device, or of a lazy module that has seen no input).
    """
    given, expected = _type_name(layer), f"nn.{kind.__name__}"
    if not isinstance(layer, kind):
        raise TypeError(f"the layer is a {given}; expected {expected}")
    for name in ("forward", "_conv_forward"):
        if getattr(type(layer), name, None) is not getattr(kind, name, None):
            raise TypeError(
                f"the layer is a {given}, which has a {name} of its own that a decomposed layer "
                f"would not run; expected {expected}"
            )
    for name, parameter in layer.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"{name} of the layer, a {given}, has no values yet; expected a layer that has run"
            )
        if parameter.is_meta:
            raise ValueError(
                f"{name} of the layer, a {given}, is on the meta device and has no values to "
                "decompose; expected a real device: materialise it before"
            )
    check_no_parametrizations(layer)
    check_no_hooks(layer)


def check_plain(module: nn.Module, kind: type[nn.Module]) -> None:
    """Raise where a dense module cannot be decomposed or has more than its kind says.

    Raises:
        TypeError: as `check_source`.
        ValueError: the same, and further parameters, buffers or modules.
    """
    check_source(module, kind)
    with_defaults = _members(kind)
    further = [
        name
        for members in (module._parameters, module._buffers, module._modules)
        for name in members
        if name not in with_defaults
    ]
    if further:
        raise ValueError(
            f"the layer has {', '.join(further)} beside what an nn.{kind.__name__} has, "
            "which its decomposed form would lose; expected a plain layer"
        )


def check_no_parametrizations(module: nn.Module, names: Sequence[str | None] = (None,)) -> None:
    """Raise where a parameter of a module, or one of ``names``, is computed from others.

    Raises:
        ValueError: naming the type.
    """
    if any(is_parametrized(module, name) for name in names):
        raise ValueError(
            f"the layer, a {_type_name(module)}, has parametrizations; expected none: "
            "torch.nn.utils.parametrize.remove_parametrizations before"
        )


def check_no_hooks(module: nn.Module) -> None:
    """Raise where a module, what is in it or a parameter has hooks or a compiled form.

    Raises:
        ValueError: naming them.
    """
    for part in module.modules():
        hooks = [name.strip("_") for name in _HOOKS if getattr(part, name, None)]
        if hooks:
            raise ValueError(
                f"the layer, a {_type_name(part)}, has hooks ({', '.join(hooks)}), which the new "
                "layer would lose; expected none: remove them before, and register them on the new "
                "layer"
            )
        if part._compiled_call_impl is not None:
            raise ValueError(
                "the layer is compiled, which the new layer would not be; expected one that is not"
            )
    check_no_parameter_hooks(module)


def check_no_parameter_hooks(module: nn.Module) -> None:
    """Raise where a parameter of a module has hooks.

    Raises:
        ValueError: naming the parameter.
    """
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"{name} of the layer has hooks, which a new parameter would lose; expected none: "
                "remove them before, and register them on the new one"
            )


def _members(dense: type[nn.Module]) -> tuple[str, ...]:
    """Names of the parameters and modules that a dense module has by itself."""
    if issubclass(dense, nn.MultiheadAttention):
        weights = [f"{side}_proj_weight" for side in ("in", "q", "k", "v")]
        return (*weights, "in_proj_bias", "out_proj", "bias_k", "bias_v")
    return ("weight", "bias")


def _type_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
