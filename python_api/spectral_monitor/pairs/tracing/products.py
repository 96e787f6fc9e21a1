"""Products of matrices: where outputs of weights meet weights, or each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from spectral_monitor.pairs.tracing.context import (
    Call,
    Context,
    NotFollowedError,
    Rule,
    here,
    words,
)
from spectral_monitor.pairs.tracing.ledger import Written, joined, reduced, varies
from spectral_monitor.pairs.tracing.store import Marks
from torch import Tensor


def multiply(context: Context, a: Tensor, b: Tensor) -> tuple[list[Tensor], int, Marks]:
    """Record ``a @ b`` of (B, M, K) and (B, K, N); return labels (B, M, N), past and marks."""
    store = context.store
    of_a, of_b = store.is_weight(a), store.is_weight(b)
    if of_b:
        return _weighed(context, a, b)
    if of_a:
        layers, past, marks = _weighed(context, b.mT, a.mT)
        return [layer.mT for layer in layers], past, marks
    layers, marks = _both(context, a, b)
    return layers, store.past(a, b), marks


def _weighed(context: Context, x: Tensor, weight: Tensor) -> tuple[list[Tensor], int, Marks]:
    """An activation (B, M, K) times a weight (B, K, N)."""
    store = context.store
    if not weight.numel():
        return [], store.past(x), Marks()
    reading = torch.stack([store.line(one, 0) for one in weight])
    writing = torch.stack([store.line(one, 1) for one in weight])
    use = context.ledger.use(
        store.past(x),
        torch.cat([reading.flatten(), writing.flatten()]),
        inputs=tuple(zip(writing, reading, strict=True)),
    )
    context.reads(x, use)
    for batch in range(len(reading)):
        read(context, x[batch], reading[batch], use, writing[batch])
    labels = context.ledger.label(use, writing)[:, None]
    shape = torch.Size((*x.shape[:2], weight.shape[2]))
    written = [labels.expand(shape), *(_other_rows(one, shape) for one in store.layers(x))]
    return [one for one in written if bool(one.any())], store.past(x) | 1 << use, Marks()


def _other_rows(layer: Tensor, shape: torch.Size) -> Tensor:
    """Labels of rows (B, M, K) that a weight maps as wholes: channels, where it mixes tokens."""
    first = layer[..., :1]
    is_one = (layer == first).all(-1, keepdim=True) & (first != layer[:1, :1, :1]).any()
    if layer.shape[-1] < 2:
        is_one = torch.zeros_like(is_one)
    return torch.where(is_one, first, 0).expand(shape)


def read(
    context: Context,
    x: Tensor,
    reading: Tensor,
    reader: int,
    others: Tensor | None = None,
    *,
    direction: int | None = None,
) -> None:
    """Activations (M, K) are the inputs of a weight's elements (K,)."""
    for layer in context.store.layers(x):
        for row in distinct(layer):
            context.ledger.feeds(row, reading, reader, others, direction=direction)


def distinct(rows: Tensor) -> list[Tensor]:
    """The different rows of labels (M, K)."""
    if not len(rows):
        return []
    if bool((rows == rows[:1]).all()):
        return [rows[0]]
    return list(torch.unique(rows, dim=0))


def _both(context: Context, a: Tensor, b: Tensor) -> tuple[list[Tensor], Marks]:
    """Two activations: outputs that meet along K, and labels that pass because they do not."""
    mine, others = context.store.layers(a), context.store.layers(b.mT)
    scores: set[int] = set()
    for x in mine:
        for y in others:
            if varies(x, -1) and varies(y, -1):
                scores |= _meet(context, x, y)
    shape = torch.Size((*a.shape[:2], b.shape[2]))
    passed = [one[..., None].expand(shape) for x in mine for one in _along(context, x)]
    over = [one[:, None].expand(shape) for y in others for one in _along(context, y)]
    if _is_attention(context, a):
        over = [context.ledger.through(x, shape[2]) for x in over]
    if _is_attention(context, b):
        passed = [context.ledger.through(x.mT, shape[1]).mT for x in passed]
    layers = joined(context.ledger, Written(passed), Written(over), is_sum=False).layers
    mixed = context.store.marks(a).mixed | context.store.marks(b).mixed
    return layers, Marks(frozenset(scores), mixed=mixed)


def _is_attention(context: Context, t: Tensor) -> bool:
    return context.store.marks(t).probabilities


def _along(context: Context, layer: Tensor) -> list[Tensor]:
    """Labels that are the same along K, writer by writer."""
    return reduced(context.ledger, layer, [-1], keepdim=False)


def _meet(context: Context, x: Tensor, y: Tensor) -> set[int]:
    """Rows (B, M, K) of one with rows (B, N, K) of the other, in each batch (head)."""
    met: set[int] = set()
    for batch in range(len(x)):
        for row in distinct(x[batch]):
            for other in distinct(y[batch]):
                if bool((row != row[0]).any()) and bool((other != other[0]).any()):
                    met |= context.ledger.meet(row, other)
    return met


def contracted(
    context: Context, given: Tensor, dims: Sequence[int], factors: frozenset[tuple[int, int]]
) -> set[int]:
    """The sum over dimensions of an elementwise product: outputs meet as in ``a @ b``.

    ``factors`` are the uses that wrote the two. Returns which of what met these are.
    """
    ledger, layers = context.ledger, context.store.layers(given)
    last = [dim % given.dim() for dim in dims] or list(range(given.dim()))
    order = [dim for dim in range(given.dim()) if dim not in last] + last
    count = math.prod(given.shape[dim] for dim in last)
    rows = [x.permute(order).reshape(-1, count) for x in layers]
    # A third that is the same all along only scales; with one that is not, two do not meet.
    rows = [x for x in rows if varies(x, -1)]
    met: set[int] = set()
    if len(rows) != 2:
        return met
    for row in distinct(torch.cat(rows, -1)):
        for first, second in factors:
            a, b = row[:count], row[count:]
            a = torch.where(ledger.of_use(a, first), a, 0)
            b = torch.where(ledger.of_use(b, second), b, 0)
            if varies(a, 0) and varies(b, 0):
                met |= ledger.meet(a, b)
    return met


def _of_weights(context: Context, a: Tensor, b: Tensor, out: Tensor) -> None:
    """Two weights (B, M, K) and (B, K, N), as LoRA's: outputs of one are inputs of the other."""
    store = context.store
    if not a.numel() or not b.numel():
        return
    for one, other in zip(a, b, strict=True):
        context.ledger.multiplied(store.line(other, 0), store.line(one, 1))
    rows = torch.stack([store.line(one, 0) for one in a])[:, :, None]
    columns = torch.stack([store.line(other, 1) for other in b])[:, None]
    wide = (len(a), a.shape[1], b.shape[2])
    store.put_product(out, *(x.expand(wide).reshape(out.shape) for x in (rows, columns)))


def _product(context: Context, call: Call, a: Tensor, b: Tensor) -> None:
    """Any number of dimensions, as ``torch.matmul`` has them."""
    out = call.out
    if out.layout != torch.strided:
        raise NotFollowedError
    a, b = _dense(a), _dense(b)
    vector_a, vector_b = a.dim() == 1, b.dim() == 1
    a = a[None] if vector_a else a
    b = b[:, None] if vector_b else b
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    # Without a batch of its own the weight is one matrix for all rows of the other.
    if b.dim() == 2 and a.dim() > 2:
        rows = context.reshaped(a, (1, math.prod(a.shape[:-1]), a.shape[-1]))
        layers, past, marks = multiply(context, rows, b[None])
        layers = [x.view(*a.shape[:-1], b.shape[-1]) for x in layers]
    else:
        wide_a, wide_b = (t.expand(*shape, *t.shape[-2:]) for t in (a, b))
        # Counted, as -1 stands for any number where an expert has no token.
        count = math.prod(shape)
        flat = [context.reshaped(t, (count, *t.shape[-2:])) for t in (wide_a, wide_b)]
        if all(context.store.is_weight(t) for t in flat):
            _of_weights(context, flat[0], flat[1], out)
            return
        layers, past, marks = multiply(context, flat[0], flat[1])
        layers = [x.reshape(*shape, *x.shape[1:]) for x in layers]
    layers = [x.reshape(out.shape) for x in layers]
    if not context.store.is_weight(a) and not context.store.is_weight(b) and not marks.scores:
        marks |= context.mixes(call, layers)
    start = call.tensor("self") if "mat1" in call.arguments or "batch1" in call.arguments else None
    if start is None and call.name == "aten::addmv":
        start = call.tensor("self")
    if start is not None and context.store.is_data(start):
        written = joined(
            context.ledger, context.written(start, out.shape), Written(layers), is_sum=True
        )
        layers, past = written.layers, past | context.store.past(start)
    if layers or past:
        context.settle(call, layers, past, marks=marks)


def _dense(t: Tensor) -> Tensor:
    """A stand-in for what has no labels: a sparse matrix, such as that of a graph."""
    return t if t.layout == torch.strided else torch.zeros(()).expand(t.shape)


def product(context: Context, call: Call) -> None:
    """``mm``, ``bmm``, ``addmm`` and the like, by the names of their arguments."""
    for first, second in (("batch1", "batch2"), ("mat1", "mat2"), ("mat", "vec"),
                          ("self", "mat2"), ("self", "vec"), ("self", "other"), ("self", "tensor"),
                          ("input", "mat2"), ("sparse", "dense")):  # fmt: skip
        a, b = call.tensor(first), call.tensor(second)
        if a is not None and b is not None:
            _product(context, call, a, b)
            return
    raise NotFollowedError


def linear(context: Context, call: Call) -> None:
    """``x @ weight^T`` where PyTorch left it whole."""
    x, weight = call.tensors("input", "weight")
    _product(context, call, x, weight.mT)


def grouped(context: Context, call: Call) -> None:
    """Rows (T, K) in consecutive groups, each times a matrix of its own (G, K, N)."""
    x, weights, ends = call.tensors("self", "mat2", "offs")
    if x.dim() != 2 or weights.dim() != 3:
        raise NotFollowedError
    labels = torch.zeros(call.out.shape, dtype=torch.int64)
    past, start = context.store.past(x), 0
    for group, end in enumerate(here(ends).tolist()):
        if end > start:
            layers, used, _ = multiply(context, x[None, start:end], weights[None, group])
            past |= used
            for layer in layers:
                labels[start:end] = layer[0]
        start = end
    context.settle(call, [labels], past, marks=Marks())


def attend(context: Context, call: Call) -> None:
    """Attention in one operation."""
    q, k, v = call.tensors("query", "key", "value")
    attention(context, q, k, v, call.out)


def attention(context: Context, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """(N, heads, T, d) queries, keys and values, of which keys and values may have fewer heads."""
    share = q.shape[1] // k.shape[1]
    for x in context.store.layers(q):
        for y in context.store.layers(k):
            wide = y.repeat_interleave(share, 1)
            context.ledger.attention |= _meet(context, x.flatten(0, 1), wide.flatten(0, 1))
    layers = []
    for layer in context.store.layers(v):
        for one in reduced(context.ledger, layer, [2], keepdim=True):
            wide = one.repeat_interleave(share, 1).expand(*q.shape[:3], v.shape[3])
            layers.append(context.ledger.through(wide, v.shape[3]))
    context.store.put(out, layers, context.store.past(q, k, v))


_PRODUCTS = words(
    "mm bmm addmm addmm_ baddbmm baddbmm_ mv addmv dot vdot matmul _int_mm _scaled_mm "
    "_addmm_activation addbmm _sparse_addmm _sparse_mm"
)
_ATTENTION = words(
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable scaled_dot_product_attention"
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_PRODUCTS, product),
    **dict.fromkeys(_ATTENTION, attend),
    "linear": linear,
    "_grouped_mm": grouped,
}
