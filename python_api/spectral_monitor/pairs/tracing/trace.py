"""`trace`: which weight of a model feeds which, by one forward pass.

The pass runs under two modes: one sees every operation on tensors, the other the functions that
come apart below, such as recurrent networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from spectral_monitor.model.getters import without_wrappers
from spectral_monitor.model.parameters import unwrap
from spectral_monitor.pairs.tracing import layers, moves, pointwise, products
from spectral_monitor.pairs.tracing.context import (
    Call,
    Context,
    NotFollowedError,
    Rule,
    tensors_of,
    words,
)
from spectral_monitor.pairs.tracing.elements import Elements
from spectral_monitor.pairs.tracing.ledger import Ledger
from spectral_monitor.pairs.tracing.map import Trace
from spectral_monitor.pairs.tracing.named_trace import named_trace
from spectral_monitor.pairs.tracing.store import Store
from spectral_monitor.pairs.tracing.undisturbed import Keeping, fixed_weights, undisturbed
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from spectral_kernels.runtime.torch_internals import TorchDispatchMode


def trace(model: nn.Module, *inputs: Any, stream: bool = False, **kwargs: Any) -> Trace:
    """Run ``model(*inputs, **kwargs)`` once, and record which weight feeds which.

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

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> traced = sk.trace(model, torch.ones(1, 4))
        >>> monitor = sk.SpectralMonitor(model, pairs=traced)
        >>> [(pair.first, pair.second) for pair in monitor.pairs]
        [('0.weight', '1.weight')]
    """
    module, passed = _traceable(model), (inputs, kwargs)
    parameters, tensors = _parameters(module), _all_tensors(passed)
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
        operations = _Operations(context, keeping)
        with _Wholes(context, operations), operations:
            module(*inputs, **kwargs)
    return named_trace(context.ledger, parameters)


def _traceable(model: nn.Module) -> nn.Module:
    """The module to run.

    Raises:
        ValueError, TypeError: see `trace`.
    """
    module = unwrap(model)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module with a forward pass, got {type(model).__name__}; "
            "trace the module and give the result with its state dict"
        )
    lazy = [name for name, p in _parameters(module).items() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{lazy[0]} is not initialised yet (lazy): run the model once before it is traced"
        )
    return module


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """By name, tied ones under each: a wrapper's own ``named_parameters`` may hide some."""
    return {
        without_wrappers(f"{path}.{leaf}" if path else leaf): parameter
        for path, owner in module.named_modules(remove_duplicate=False)
        for leaf, parameter in owner._parameters.items()
        if parameter is not None
    }


def _all_tensors(value: Any) -> list[Tensor]:
    """All tensors in nested containers, objects with fields among them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for entry in value.values() for t in _all_tensors(entry)]
    if isinstance(value, (list, tuple, set)):
        return [t for entry in value for t in _all_tensors(entry)]
    if hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        return [t for entry in vars(value).values() for t in _all_tensors(entry)]
    return []


_RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **moves.RULES,
    **products.RULES,
    **layers.RULES,
}
# Results that say nothing of which weight wrote them.
_SILENT = frozenset(
    words(
        "argmax argmin bincount nonzero unique _unique2 unique_dim equal is_nonzero "
        "_local_scalar_dense histc searchsorted bucketize one_hot empty_like zeros_like ones_like "
        "full_like rand_like randn_like new_empty new_zeros new_ones new_full any all isin "
        "_assert_async multinomial empty_strided resize_ set_ sym_size new_empty_strided "
        "count_nonzero allclose isfinite as_strided_ squeeze_ unsqueeze_ t_ transpose_ detach_"
    )
)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation on tensors after it ran, and follows what it did to labels."""

    # _Operations that take functions, such as flexible attention.
    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the first operation imports torch._dynamo, which takes seconds.
        return False

    def __init__(self, context: Context, keeping: Keeping) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self._keeping = keeping
        self.suspended = False

    def __torch_dispatch__(
        self,
        function: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self._keeping.before(function, args, kwargs)
        result = function(*args, **kwargs)
        if not self.suspended:
            if hasattr(function, "_schema"):
                self._follow(Call.of(function, args, kwargs, result))
            else:
                self._higher(str(function), args, result)
        return result

    def _follow(self, call: Call) -> None:
        store = self.context.store
        if all(store.of(t) is None for t in call.inputs()):
            out = call.output()
            if out is not None and call.writes is None and not call.is_view():
                store.forget(out)
            return
        self.context.ledger.touched.update(map(store.first_number, call.inputs()))
        name = call.base_name
        rule = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
        if rule is not None and not (call.is_view() and name not in _DTYPE_VIEWS):
            self._apply(rule, call)
        elif call.is_view() or call.output() is None:
            return
        elif name in _SILENT:
            self._data(call)
        elif call.is_pointwise:
            self._apply(pointwise.pointwise, call)
        else:
            self.context.end(call)

    def _apply(self, rule: Rule, call: Call) -> None:
        try:
            rule(self.context, call)
        except NotFollowedError:
            self.context.end(call)

    def _data(self, call: Call) -> None:
        """Numbers computed from the inputs that carry no label; likes of a tensor are new."""
        name = call.base_name
        for out in tensors_of(call.result):
            if name.endswith(("_like", "strided")) or name.startswith("new_"):
                self.context.store.forget(out)
            elif call.writes is None:
                self.context.store.put(out, [], self.context.past(call))

    def _higher(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        """An operation that takes functions; of these flexible attention is known."""
        store = self.context.store
        given = list(tensors_of(args))
        outs = list(tensors_of(result))
        if "flex_attention" in name and len(given) >= 3:
            products.attention(self.context, given[0], given[1], given[2], outs[0])
            return
        if any(store.layers(t) for t in given):
            self.context.ledger.ended[name] += 1
        for out in outs:
            store.put(out, [], store.past(*given))


# How many of the first arguments are activations.
_READ = {"linear": 1, "conv1d": 1, "conv2d": 1, "conv3d": 1, "multi_head_attention_forward": 3}
_DTYPE_VIEWS = frozenset({"view_as_real", "view_as_complex"})


class _Wholes(TorchFunctionMode):
    """Sees functions that come apart below: the arguments of layers, and recurrent networks."""

    def __init__(self, context: Context, operations: _Operations) -> None:
        super().__init__()
        self._context = context
        self._operations = operations

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        # Learned queries are a parameter that a layer reads: an activation, not a weight.
        for given in args[: _READ.get(name, 0)]:
            self._read(given)
        rule = layers.FUNCTION_RULES.get(name)
        if rule is None or not args or not isinstance(args[0], Tensor):
            return function(*args, **kwargs)
        before, self._operations.suspended = self._operations.suspended, True
        try:
            result = function(*args, **kwargs)
            if not before:
                rule(self._context, args, result)
        finally:
            self._operations.suspended = before
        return result

    def _read(self, x: Any) -> None:
        if not isinstance(x, Tensor) or not self._context.store.is_weight(x):
            return
        before, self._operations.suspended = self._operations.suspended, True
        try:
            self._context.store.put_beside(x, self._context.table(x))
        finally:
            self._operations.suspended = before
