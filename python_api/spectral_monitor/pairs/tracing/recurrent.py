"""LSTMs, GRUs and plain recurrent layers, which are one operation each.

What flows on is the content gate (g of an LSTM, n of a GRU), of the weights for inputs and for the
state; input weights feed the recurrent ones; a direction reads its own of the layer before. So in
the papers' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from spectral_monitor.pairs.tracing.calls import tensors_of
from spectral_monitor.pairs.tracing.context import Context
from spectral_monitor.pairs.tracing.products import read
from torch import Tensor

__all__ = ["RULES"]

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_CONTENT = 2


@dataclass(slots=True)
class _Weights:
    """The matrices of one layer and direction: of inputs, of the state, of a projection."""

    uses: dict[str, int]
    inputs: dict[str, Tensor]
    """Elements (inputs,) of each."""
    outputs: list[Tensor]
    """Labels (outputs,) of what flows on."""
    past: int


def _take_part(
    context: Context, name: str, weights: dict[str, Tensor], past: int, direction: int | None
) -> _Weights:
    """Uses of the weights of one layer, which meet among themselves."""
    ledger, store = context.ledger, context.store
    uses, labels, inputs = {}, {}, {}
    for role, weight in weights.items():
        gates = 1 if role == "hr" else _GATES[name]
        size = weight.shape[0] // gates
        start = _CONTENT * size if gates > 1 else 0
        numbers = store.numbers(weight[start : start + size, :1])[:, 0]
        uses[role] = ledger.use(past, numbers, direction=direction)
        labels[role], inputs[role] = (
            ledger.label(uses[role], numbers), store.numbers(weight[:1])[0]
        )  # fmt: skip
        past |= 1 << uses[role]
    outputs = [labels["ih"], labels["hh"]]
    if "hr" in weights:
        for label in outputs:
            ledger.feeds(label, inputs["hr"], uses["hr"])
        outputs = [labels["hr"]]
    into_hidden = labels["hr"] if "hr" in weights else labels["ih"]
    ledger.feeds(into_hidden, inputs["hh"], uses["hh"])
    return _Weights(uses, inputs, outputs, past)


def network(context: Context, name: str, args: tuple[Any, ...], result: Any) -> None:
    """All layers and directions of `nn.LSTM` and its like."""
    place = next(i for i, value in enumerate(args) if _are_weights(value))
    flat, has_biases, layers = args[place], bool(args[place + 1]), int(args[place + 2])
    directions = 2 if args[place + 5] else 1
    groups = _grouped(flat, layers * directions, has_biases)
    store, x = context.store, args[0]
    start = [t for t in tensors_of(args[1:place]) if t.dim() > 1]
    past = store.past(x, *start)
    states: list[list[Tensor]] = []
    for index, weights in enumerate(groups):
        layer, direction = divmod(index, directions)
        own = direction if directions == 2 else None
        made = _take_part(context, name, weights, past, own)
        into, reader = made.inputs["ih"], made.uses["ih"]
        if layer == 0:
            context.reads(x, reader)
            rows = context.reshaped(x, (-1, x.shape[-1]))
            read(context, rows, into, reader, direction=own)
        else:
            for label in _side_by_side(states[(layer - 1) * directions : layer * directions]):
                context.ledger.feeds(label, into, reader, direction=own)
        if start:
            rows = context.reshaped(start[0][index], (-1, start[0].shape[-1]))
            read(context, rows, made.inputs["hh"], made.uses["hh"])
        past = made.past
        states.append(made.outputs)
    out, *last = tensors_of(result)
    labels = _side_by_side(states[-directions:])
    store.put(out, [label.expand(out.shape) for label in labels], past)
    for state in last:
        if state.dim() > 1 and state.shape[-1] == len(states[0][0]):
            # (layers * directions, batch, outputs), or without a batch.
            stacked = [torch.stack(entries) for entries in zip(*states, strict=True)]
            wide = [x.unsqueeze(-2) if state.dim() == 3 else x for x in stacked]
            store.put(state, [x.expand(state.shape) for x in wide], past)


def _side_by_side(states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*states, strict=True)]


def cell(context: Context, name: str, args: tuple[Any, ...], result: Any) -> None:
    """One step of `nn.LSTMCell` and its like."""
    x, state, ih, hh = args[:4]
    store = context.store
    past = store.past(x, *tensors_of(state))
    made = _take_part(context, name, {"ih": ih, "hh": hh}, past, None)
    context.reads(x, made.uses["ih"])
    rows = context.reshaped(x, (-1, x.shape[-1]))
    read(context, rows, made.inputs["ih"], made.uses["ih"])
    for out in tensors_of(result):
        store.put(out, [label.expand(out.shape) for label in made.outputs], made.past)


def _are_weights(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(
        isinstance(x, Tensor) for x in value) and value[0].dim() == 2  # fmt: skip


def _grouped(flat: Sequence[Tensor], count: int, has_biases: bool) -> list[dict[str, Tensor]]:
    """The matrices of each layer and direction: of inputs, of the state, of a projection."""
    size = len(flat) // count
    groups = []
    for first in range(0, len(flat), size):
        group = {"ih": flat[first], "hh": flat[first + 1]}
        if size > (4 if has_biases else 2):
            group["hr"] = flat[first + size - 1]
        groups.append(group)
    return groups


_Rule = Callable[[Context, tuple[Any, ...], Any], None]


def _for(rule: Callable[[Context, str, tuple[Any, ...], Any], None], name: str) -> _Rule:
    return lambda context, args, result: rule(context, name, args, result)


RULES: dict[str, _Rule] = {
    **{name: _for(network, name) for name in _GATES},
    **{f"{name}_cell": _for(cell, name) for name in _GATES},
}
