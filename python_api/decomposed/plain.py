"""Refusals: what a layer has that the layer in its place would not have."""

from __future__ import annotations

from torch import nn

from python_api.decomposed.kinds import kind_of
from python_api.decomposed.layer import check_source

__all__ = ["check_no_hooks", "check_no_parameter_hooks", "check_plain"]

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


def check_plain(module: nn.Module) -> None:
    """Raise where a dense module has more than its type says.

    Raises:
        TypeError: a subclass with a forward of its own.
        ValueError: hooks, parametrizations, further parameters, buffers or modules; a weight
            without values (lazy, meta).
    """
    kind = kind_of(module)
    assert kind is not None
    check_source(module, (kind.dense,))
    check_no_hooks(module)
    with_defaults = _members(kind.dense)
    further = [
        name
        for members in (module._parameters, module._buffers, module._modules)
        for name in members
        if name not in with_defaults
    ]
    if further:
        raise ValueError(
            f"the layer has {', '.join(further)} beside what an nn.{kind.dense.__name__} has, "
            "which its decomposed form would lose; expected a plain layer"
        )


def check_no_hooks(module: nn.Module) -> None:
    """Raise where a module, what is in it or a parameter has hooks or a compiled form.

    Raises:
        ValueError: naming them.
    """
    for part in module.modules():
        found = [name.strip("_") for name in _HOOKS if getattr(part, name, None)]
        if found:
            raise ValueError(
                f"the layer has hooks ({', '.join(found)}), which the new layer would lose; "
                "expected none: remove them before, and register them on the new layer"
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
