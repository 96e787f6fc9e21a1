"""`trace`: which weight of a model feeds which, by one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectral_monitor.model.getters import without_wrappers
from spectral_monitor.model.parameters import unwrap
from spectral_monitor.pairs.tracing.computed import fixed_weights
from spectral_monitor.pairs.tracing.context import Context
from spectral_monitor.pairs.tracing.elements import Elements
from spectral_monitor.pairs.tracing.ledger import Ledger
from spectral_monitor.pairs.tracing.map import Trace
from spectral_monitor.pairs.tracing.mode import Operations, Wholes
from spectral_monitor.pairs.tracing.named import named_trace
from spectral_monitor.pairs.tracing.running import undisturbed
from spectral_monitor.pairs.tracing.store import Store
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["trace"]


def trace(model: nn.Module, *inputs: Any, stream: bool = False, **kwargs: Any) -> Trace:
    """Run ``model(*inputs, **kwargs)`` once, and record which weight feeds which.

    ::

        traced = sk.trace(model, tokens)
        print(traced)
        monitor = sk.SpectralMonitor(model, pairs=traced)

    The pass is made in evaluation mode and without gradients. It leaves the model as it was: flags,
    attributes, weights, buffers, caches, gradients and random states; inputs are left as they were,
    too. No hook is placed; those that are there run. Every activation carries which output of which
    weight wrote it, through views, heads, elementwise operations, norms, residual additions and
    gathers, to the next product with a weight, so orientation, heads, grouped heads and fused
    layouts are those that the forward method itself uses. Queries and keys are found where they are
    multiplied, values where they reach the output through the probabilities. A parametrized weight
    is one weight under the layer's name, ``conv.weight``.

    At a residual addition x + f(x) the nearest writer counts, the last weight of f. Experts that no
    input reached have the edges of those beside them, and are marked so. What no rule knows ends
    the labels there, and the trace names it.

    Args:
        model: a module; compiled or wrapped for data parallelism too.
        inputs, kwargs: of its forward method; small ones are enough, such as one sequence of eight
            tokens or one image; the time grows with tokens times width, so two tokens do for a wide
            model. Meta tensors serve a model on the meta device.
        stream: at residual additions all that was written to the stream so far feeds what reads
            it, x too. In a deep model that is every layer with every later one.

    Raises:
        ValueError: a lazy parameter without a shape, or inputs without a row.
        TypeError: the model is no module (a state dict has no forward pass), or scripted.
        Exception: whatever the forward method raises, with the model as it was.
    """
    module = unwrap(model)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module with a forward pass, got {type(model).__name__}; "
            "trace the module and give the result with its state dict"
        )
    parameters = _parameters(module)
    lazy = [name for name, p in parameters.items() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{lazy[0]} is not initialised yet (lazy): run the model once before it is traced"
        )
    passed = inputs, kwargs
    tensors = _tensors(passed)
    if tensors and not any(t.numel() for t in tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ValueError(f"inputs: expected one row at least, got tensors of shape {shapes}")
    with undisturbed(module, passed) as keeping, fixed_weights(module) as fixed:
        parameters = {n: p for n, p in parameters.items() if n not in fixed.parts} | fixed.weights
        elements = Elements(parameters)
        context = Context(
            Ledger(elements, keeps_stream=stream), Store(elements, list(parameters.values()))
        )
        for tensor in tensors:
            context.store.put(tensor)
        operations = Operations(context, keeping)
        with Wholes(context, operations), operations:
            module(*inputs, **kwargs)
    return named_trace(context.ledger, parameters)


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """By name, tied ones under each: a wrapper's own ``named_parameters`` may hide some."""
    return {
        without_wrappers(f"{path}.{leaf}" if path else leaf): parameter
        for path, owner in module.named_modules(remove_duplicate=False)
        for leaf, parameter in owner._parameters.items()
        if parameter is not None
    }


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested containers, objects with fields among them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for entry in value.values() for t in _tensors(entry)]
    if isinstance(value, (list, tuple, set)):
        return [t for entry in value for t in _tensors(entry)]
    if hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        return [t for entry in vars(value).values() for t in _tensors(entry)]
    return []
