"""Convolutions, tables that are looked up, and decomposed layers."""

from __future__ import annotations

import torch
from spectral_monitor.pairs.tracing.calls import Call
from spectral_monitor.pairs.tracing.context import Context, Rule
from spectral_monitor.pairs.tracing.pointwise import resized
from spectral_monitor.pairs.tracing.products import distinct, read
from spectral_monitor.pairs.tracing.store import Marks
from torch import Tensor

__all__ = ["RULES"]


def embedding(context: Context, call: Call) -> None:
    """Rows of a table: its columns are what is written."""
    table, out = call.tensor("weight"), call.output()
    assert table is not None
    assert out is not None
    if context.store.is_weight(table):
        layers = [x[0].expand(out.shape) for x in context.table(table)]
    else:
        layers = [x[0].expand(out.shape) for x in context.store.layers(table) if len(x)]
    context.settle(call, layers, context.past(call))


def convolution(context: Context, call: Call) -> None:
    """Channels meet a kernel at its centre tap; each output channel is written by its row."""
    x, weight = call.tensor("input"), call.tensor("weight")
    out = call.output()
    assert x is not None
    assert weight is not None
    assert out is not None
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
            context.end(call)
            return
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
    x, U, Vh, out = call.tensor("x"), call.tensor("U"), call.tensor("Vh"), call.output()
    if x is None or U is None or Vh is None or out is None or U.dim() != 2:
        context.end(call)
        return
    store = context.store
    reading, writing = store.numbers(Vh[:1])[0], store.numbers(U[:, :1])[:, 0]
    sigma = call.tensor("Sigma")
    assert sigma is not None
    every = torch.cat([reading, writing, store.numbers(sigma).flatten()])
    use = context.ledger.use(store.past(x), every)
    context.reads(x, use)
    read(context, context.reshaped(x, (-1, x.shape[-1])), reading, use)
    labels = context.ledger.label(use, writing).expand(out.shape)
    context.settle(call, [labels], store.past(x) | 1 << use, marks=Marks())


def bilinear(context: Context, call: Call) -> None:
    """x^T A y for each matrix A of a stack, as `nn.Bilinear`: x meets rows, y meets columns."""
    x, stack, y = (call.tensor(name) for name in ("i1", "i2", "i3"))
    store, out = context.store, call.output()
    if (
        x is None
        or stack is None
        or y is None
        or out is None
        or not store.is_weight(stack)
        or stack.dim() != 3
        or [list(call.arguments[f"expand{i}"]) for i in (1, 2, 3)] != [[1, 3], [0], [1, 2]]
    ):
        context.end(call)
        return
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
    table, out = call.tensor("weight"), call.output()
    assert table is not None
    assert out is not None
    layers = [x[0].expand(out.shape) for x in context.table(table)]
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
