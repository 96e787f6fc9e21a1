"""The two modes under which a traced forward pass runs, and the LSTMs and GRUs seen whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from spectral_monitor.pairs.tracing import layers, moves, pointwise, products, recurrent
from spectral_monitor.pairs.tracing.calls import Call, tensors_of, words
from spectral_monitor.pairs.tracing.context import Context, Rule
from spectral_monitor.pairs.tracing.keeping import Keeping
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Operations", "Wholes"]

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


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation on tensors after it ran, and follows what it did to labels."""

    # Operations that take functions, such as flexible attention.
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
            out = call.writes if call.writes is not None else call.output()
            if out is not None and call.writes is None and not call.is_view():
                store.forget(out)
            return
        self.context.ledger.touched.update(map(store.first_number, call.inputs()))
        name = call.name.rpartition("::")[2]
        rule = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
        if rule is not None and not (call.is_view() and name not in _DTYPE_VIEWS):
            rule(self.context, call)
        elif call.is_view() or call.output() is None:
            return
        elif name in _SILENT:
            self._data(call)
        elif call.is_pointwise:
            pointwise.pointwise(self.context, call)
        else:
            self.context.end(call)

    def _data(self, call: Call) -> None:
        """Numbers computed from the inputs that carry no label; likes of a tensor are new."""
        name = call.name.rpartition("::")[2]
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


class Wholes(TorchFunctionMode):
    """Sees functions that come apart below: the arguments of layers, and recurrent networks."""

    def __init__(self, context: Context, operations: Operations) -> None:
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
        rule = recurrent.RULES.get(name)
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
