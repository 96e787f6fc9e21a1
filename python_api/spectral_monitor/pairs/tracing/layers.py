"""Layers that are one operation: convolutions, tables, decomposed and recurrent layers.

What flows on from a recurrent layer is the content gate (g of an LSTM, n of a GRU), of the weights
for inputs and for the state; input weights feed the recurrent ones; a direction reads its own of
the layer before. So in the papers' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from spectral_monitor.pairs.tracing.context import Call, Context, NotFollowedError, Rule, tensors_of
from spectral_monitor.pairs.tracing.pointwise import resized
from spectral_monitor.pairs.tracing.products import distinct, read
from spectral_monitor.pairs.tracing.store import Marks
from torch import Tensor


def embedding(context: Context, call: Call) -> None:
    """Rows of a table: its columns are what is written."""
    (table,), out = call.tensors("weight"), call.out
    if context.store.is_weight(table):
        layers = [x[0].expand(out.shape) for x in context.table(table)]
    else:
        layers = [x[0].expand(out.shape) for x in context.store.layers(table) if len(x)]
    context.settle(call, layers, context.past(call))


def convolution(context: Context, call: Call) -> None:
    """Channels meet a kernel at its centre tap; each output channel is written by its row."""
    (x, weight), out = call.tensors("input", "weight"), call.out
    groups = int(call.arguments.get("groups", 1))
    turned = bool(call.arguments.get("transposed", False))
    inside = weight.shape[0] // groups if turned else weight.shape[1]
    outside = weight.shape[1] if turned else weight.shape[0] // groups
    depthwise = groups > 1 and inside == outside == 1
    pixels = out[0, 0].numel() if out.dim() in (4, 5) else 0
    past = context.store.past(x)
    if depthwise or not context.store.is_weight(weight):
        # One kernel for each channel is a vector: channels pass.
        if context.store.is_weight(weight):
            numbers = context.store.numbers(_centre(weight)).flatten()
            past |= 1 << context.ledger.use(past, numbers, pixels=pixels)
        if not depthwise:
            raise NotFollowedError
        layers = [resized(layer, out.shape) for layer in context.store.layers(x)]
        context.settle(call, layers, past)
        return
    kernel = _centre(weight)
    parts = [
        kernel[g * inside : (g + 1) * inside].mT if turned
        else kernel[g * outside : (g + 1) * outside]
        for g in range(groups)
    ]  # fmt: skip
    reading = [context.store.line(part, 1) for part in parts]
    writing = [context.store.line(part, 0) for part in parts]
    use = context.ledger.use(past, torch.cat([*reading, *writing]), pixels=pixels)
    context.reads(x, use)
    for group, numbers in enumerate(reading):
        _read_pixels(context, x[:, group * inside : (group + 1) * inside], numbers, use)
    labels = context.ledger.label(use, torch.cat(writing))
    shape = (1, -1) + (1,) * (out.dim() - 2)
    context.settle(call, [labels.view(shape).expand(out.shape)], past | 1 << use, marks=Marks())


def _centre(weight: Tensor) -> Tensor:
    """A kernel's centre tap (first dimension, second dimension): a view."""
    for size in weight.shape[2:]:
        weight = weight.select(2, size // 2)
    return weight


def _read_pixels(context: Context, x: Tensor, reading: Tensor, reader: int) -> None:
    """Channels (N, C, ...) of every pixel are the inputs of a weight's elements (C,)."""
    for layer in context.store.layers(x):
        for row in distinct(layer.movedim(1, -1).flatten(0, -2)):
            context.ledger.feeds(row, reading, reader)


def decomposed(context: Context, call: Call) -> None:
    """x @ (U Sigma Vh)^T: inputs at the columns of Vh, outputs at the rows of U."""
    x, U, sigma, Vh = call.tensors("x", "U", "Sigma", "Vh")
    if U.dim() != 2:
        raise NotFollowedError
    store = context.store
    reading, writing = store.numbers(Vh[:1])[0], store.numbers(U[:, :1])[:, 0]
    every = torch.cat([reading, writing, store.numbers(sigma).flatten()])
    use = context.ledger.use(store.past(x), every)
    context.reads(x, use)
    read(context, context.reshaped(x, (-1, x.shape[-1])), reading, use)
    labels = context.ledger.label(use, writing).expand(call.out.shape)
    context.settle(call, [labels], store.past(x) | 1 << use, marks=Marks())


def bilinear(context: Context, call: Call) -> None:
    """x^T A y for each matrix A of a stack, as `nn.Bilinear`: x meets rows, y meets columns."""
    x, stack, y = call.tensors("i1", "i2", "i3")
    store = context.store
    if (
        not store.is_weight(stack)
        or stack.dim() != 3
        or [list(call.arguments[f"expand{i}"]) for i in (1, 2, 3)] != [[1, 3], [0], [1, 2]]
    ):
        raise NotFollowedError
    use = context.ledger.use(store.past(x, y), store.numbers(stack[:, :1, :1]))
    every = store.line(stack, 0)
    for given, dim in ((x, 1), (y, 2)):
        context.reads(given, use)
        read(context, given, store.line(stack, dim), use, every)
    # An output is a whole matrix, not a row of one: it has no label.
    mixed = Marks(mixed=frozenset([(use, call.name)]))
    context.settle(call, [], store.past(x, y) | 1 << use, marks=mixed)


def bag(context: Context, call: Call) -> None:
    """Sums of rows of a table."""
    (table,) = call.tensors("weight")
    layers = [x[0].expand(call.out.shape) for x in context.table(table)]
    context.settle(call, layers, context.past(call))


RULES: dict[str, Rule] = {
    "embedding": embedding,
    "embedding_renorm_": lambda context, call: None,
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), bag),
    **dict.fromkeys(
        ("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution",
         "miopen_convolution", "slow_conv2d_forward", "convolution_overrideable"),
        convolution,
    ),
    "usv_matmul": decomposed,
    "_trilinear": bilinear,
}  # fmt: skip


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
    """All layers and directions of `nn.LSTM`, `nn.GRU` or `nn.RNN`."""
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
    """One step of `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell`."""
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


_FunctionRule = Callable[[Context, tuple[Any, ...], Any], None]


def _for(rule: Callable[[Context, str, tuple[Any, ...], Any], None], name: str) -> _FunctionRule:
    return lambda context, args, result: rule(context, name, args, result)


FUNCTION_RULES: dict[str, _FunctionRule] = {
    **{name: _for(network, name) for name in _GATES},
    **{f"{name}_cell": _for(cell, name) for name in _GATES},
}
