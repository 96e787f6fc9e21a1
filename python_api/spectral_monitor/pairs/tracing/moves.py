"""Operations that move elements: the same operation on their labels.

Rows added at given places are moved too: what experts wrote for their tokens, or neighbours in a
graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from spectral_monitor.pairs.tracing.context import (
    Call,
    Context,
    NotFollowedError,
    Rule,
    here,
    tensors_of,
    words,
)
from spectral_monitor.pairs.tracing.ledger import Written, joined
from torch import Tensor


def add_rows(context: Context, call: Call) -> None:
    """``index_add`` and ``index_reduce``: an index for each row."""
    target, source, index = call.tensors("self", "source", "index")
    _add(context, call, target, source, here(index), int(call.arguments["dim"]))


def scatter_rows(context: Context, call: Call) -> None:
    """``scatter_add`` and ``scatter_reduce``, where all entries of a row have its index."""
    target, source, index = call.tensors("self", "src", "index")
    if not index.numel():
        raise NotFollowedError
    dim, places = int(call.arguments["dim"]) % index.dim(), here(index)
    row = places
    for other in range(index.dim()):
        if other != dim:
            row = row.narrow(other, 0, 1)
    if not bool((places == row).all()) or any(
        index.shape[d] != target.shape[d] for d in range(index.dim()) if d != dim
    ):
        raise NotFollowedError
    used = source[tuple(slice(size) for size in index.shape)]
    _add(context, call, target, used, row.flatten(), dim)


def _accumulate(context: Context, call: Call) -> None:
    """``index_put`` that adds, by one index for each row."""
    target, source = call.tensors("self", "values")
    indices = [(d, i) for d, i in enumerate(call.arguments["indices"]) if i is not None]
    if len(indices) != 1 or indices[0][1].dim() != 1:
        raise NotFollowedError
    dim, index = indices[0]
    if index.dtype == torch.bool or source.dim() != target.dim():
        raise NotFollowedError
    _add(context, call, target, source, here(index).long(), dim)


def _add(
    context: Context, call: Call, target: Tensor, source: Tensor, index: Tensor, dim: int
) -> None:
    layers, new = context.store.layers(target), context.store.layers(source)
    for rows in _rounds(index, _kinds(new, dim, len(index))):
        at = index[rows]
        ours = Written([x.index_select(dim, rows) for x in new])
        old = Written([x.index_select(dim, at) for x in layers])
        sums = joined(context.ledger, old, ours, is_sum=True).layers
        while len(layers) < len(sums):
            layers.append(torch.zeros(target.shape, dtype=torch.int64))
        layers = [
            x.index_copy(dim, at, sums[i]) if i < len(sums) else x.index_fill(dim, at, 0)
            for i, x in enumerate(layers)
        ]
    context.settle(call, layers, context.past(call))


def _kinds(layers: list[Tensor], dim: int, count: int) -> Tensor:
    """Rows with the same labels have the same number: adding them again changes nothing."""
    if not layers or not count:
        return torch.zeros(count, dtype=torch.int64)
    rows = torch.cat([x.movedim(dim, 0).reshape(count, -1) for x in layers], 1)
    numbers: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    return numbers


def _rounds(index: Tensor, kinds: Tensor) -> list[Tensor]:
    """Positions of different rows, in rounds within which no index comes twice."""
    rounds: list[list[int]] = []
    seen: set[tuple[int, int]] = set()
    counts: dict[int, int] = {}
    for position, pair in enumerate(zip(index.tolist(), kinds.tolist(), strict=True)):
        if pair in seen:
            continue
        seen.add(pair)
        rank = counts.get(pair[0], 0)
        counts[pair[0]] = rank + 1
        if rank == len(rounds):
            rounds.append([])
        rounds[rank].append(position)
    return [torch.tensor(positions) for positions in rounds]


_ROW_RULES: dict[str, Rule] = {
    **dict.fromkeys(words("index_add index_add_ index_reduce index_reduce_"), add_rows),
    **dict.fromkeys(words("scatter_add scatter_add_ scatter_reduce scatter_reduce_"), scatter_rows),
}


# Which arguments hold what is moved; all others say where to.
_MOVES = {
    **dict.fromkeys(
        words(
            "clone _to_copy contiguous index index_select gather repeat roll flip rot90 take "
            "constant_pad_nd pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle "
            "im2col unfold_copy reflection_pad1d reflection_pad2d reflection_pad3d "
            "replication_pad1d replication_pad2d replication_pad3d _unsafe_index diag_embed "
            "diagonal_copy permute_copy view_copy masked_select _reshape_copy lift_fresh_copy "
            "_unsafe_view slice_copy select_copy expand_copy transpose_copy trace "
            "repeat_interleave _pad_circular resolve_neg resolve_conj unsafe_split "
            "unsafe_split_with_sizes"
        ),
        ("self",),
    ),
    "cat": ("tensors",),
    "stack": ("tensors",),
    "_chunk_cat": ("tensors",),
    "unbind_copy": ("self",),
    "split_copy": ("self",),
    "split_with_sizes_copy": ("self",),
    **dict.fromkeys(("index_put", "index_put_", "_index_put_impl_"), ("self", "values")),
    **dict.fromkeys(("index_copy", "index_copy_", "masked_scatter", "masked_scatter_"),
                    ("self", "source")),
    **dict.fromkeys(("scatter", "scatter_", "slice_scatter", "select_scatter"), ("self", "src")),
}  # fmt: skip


def move(context: Context, call: Call) -> None:
    """Run the operation on labels in place of what it moves."""
    named = _MOVES[call.base_name]
    given = [t for name in named for t in tensors_of(call.arguments.get(name))]
    if call.arguments.get("accumulate"):
        _accumulate(context, call)
        return
    data = [t for t in given if context.store.is_data(t)]
    if not data:
        if call.writes is None and any(context.store.is_weight(t) for t in given):
            with contextlib.suppress(NotFollowedError):
                _weights(context, call, named)
        return
    parts = [context.written(t, t.shape) for t in given]
    past = context.past(call)
    layers = _moved(call, named, [part.layers for part in parts])
    outs = list(tensors_of(call.result))
    if call.writes is None and len(outs) > 1:
        for index, one in enumerate(outs):
            context.store.put(one, [x[index] for x in layers], past)
        return
    context.settle(call, [x[0] for x in layers], past, marks=context.marks(call))


def _weights(context: Context, call: Call, named: Sequence[str]) -> None:
    """Elements of a weight in other places; rows that the inputs chose are a table's outputs."""
    given, out = call.tensor(named[0]), call.out
    if given is not None and given.dim() == 2 and _is_looked_up(context, call):
        layers = [x[0].expand(out.shape) for x in context.table(given)]
        context.settle(call, layers, context.past(call))
        return
    if given is not None and given.shape == out.shape and call.base_name in _COPIES:
        context.store.put_copied(out, given)
        return
    every = [t for name in named for t in tensors_of(call.arguments.get(name))]
    moved = _moved(call, named, [[context.store.numbers(t)] for t in every])
    for one, numbers in zip(tensors_of(call.result), moved[0], strict=False):
        context.store.put_numbers(one, numbers)


_COPIES = words("clone _to_copy contiguous _unsafe_view")


def _is_looked_up(context: Context, call: Call) -> bool:
    """Whether the inputs chose rows."""
    if call.base_name == "index":
        indices = call.arguments["indices"]
        return len(indices) == 1 and context.store.is_data(indices[0])
    is_rows = call.base_name == "index_select" and call.arguments["dim"] in (0, -2)
    return is_rows and context.store.is_data(call.arguments["index"])


def _moved(
    call: Call, named: Sequence[str], layers: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]]:
    """The results of the operation on the i-th layer of every input, for every i.

    Raises:
        NotFollowedError: the operation takes no whole numbers.
    """
    results = []
    for index in range(max(map(len, layers), default=0)):
        ours = iter([x[index] if index < len(x) else None for x in layers])
        arguments = {
            name: _replaced(value, ours) if name in named else _plain(value)
            for name, value in call.arguments.items()
        }
        results.append(_run(call, arguments))
    return results


def _replaced(value: Any, ours: Any) -> Any:
    if isinstance(value, Tensor):
        layer = next(ours)
        return torch.zeros(value.shape, dtype=torch.int64) if layer is None else layer.clone()
    if isinstance(value, (list, tuple)):
        return [_replaced(entry, ours) for entry in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return here(value)
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _run(call: Call, arguments: dict[str, Any]) -> list[Tensor]:
    """The operation on whole numbers; through float64, which holds them, where it must be."""
    ints = {k: v for k, v in arguments.items() if k not in ("dtype", "device", "layout",
            "pin_memory", "memory_format", "non_blocking", "value")}  # fmt: skip
    if isinstance(arguments.get("value"), (int, float)):
        ints["value"] = 0
    names = [a for a in call.function._schema.arguments if a.name in ints]
    for floats in (False, True):
        args = [ints[a.name] for a in names if not a.kwarg_only]
        kwargs = {a.name: ints[a.name] for a in names if a.kwarg_only}
        if floats:
            args = [_float(x) for x in args]
        try:
            result = call.function(*args, **kwargs)
        except (RuntimeError, NotImplementedError, IndexError):
            continue
        return [x.long() for x in tensors_of(result)]
    raise NotFollowedError


def _float(value: Any) -> Any:
    # Indices stay whole numbers.
    if isinstance(value, Tensor) and value.dtype == torch.int64 and int(value.max()) >= 0:
        return value.double()
    return value


def copy(context: Context, call: Call) -> None:
    """Copying into a place: a weight stays one where it fills new memory."""
    target, src = call.tensors("self", "src")
    fills = target.numel() * target.element_size() == target.untyped_storage().nbytes()
    if fills and context.store.is_weight(src) and not context.store.is_data(target):
        context.store.put_copied(target, src)
        return
    if not context.store.is_data(src) and not context.store.is_weight(src):
        if context.store.is_data(target):
            context.store.write(target, [], 0)
        return
    part = context.written(src, target.shape)
    context.store.write(target, part.layers, context.store.past(src))


def packed(context: Context, call: Call) -> None:
    """Sequences of a batch, padded to one length, as one row for each token of each."""
    (given,) = call.tensors("input")
    if not context.store.is_data(given):
        raise NotFollowedError
    moved = _moved(call, ("input",), [context.store.layers(given)])
    context.store.put(call.out, [x[0] for x in moved], context.past(call))


def chosen(context: Context, call: Call) -> None:
    """The largest or sorted values: elements at the indices that came out."""
    (given,) = call.tensors("self")
    values, indices = list(tensors_of(call.result))[:2]
    dim = int(call.arguments.get("dim", -1))
    places = here(indices)
    layers = [x.gather(dim, places) for x in context.store.layers(given)]
    context.store.put(values, layers, context.past(call))
    context.store.put(indices, [], context.past(call))


def as_complex(context: Context, call: Call) -> None:
    """Pairs of numbers as one complex number, which carries the labels of both, in two layers."""
    (given,) = call.tensors("self")
    layers = [x[..., part] for x in context.store.layers(given) for part in (0, 1)]
    context.store.put_as(call.out, layers, given)


def as_real(context: Context, call: Call) -> None:
    """Complex numbers as pairs again: the two labels of each use of a weight."""
    (given,) = call.tensors("self")
    ledger, layers = context.ledger, context.store.layers(given)
    pairs = []
    for use in sorted({use for layer in layers for use in ledger.uses(layer)}):
        own = [torch.where(ledger.of_use(layer, use), layer, 0) for layer in layers]
        parts = [layer for layer in own if bool(layer.any())]
        pairs.append(torch.stack((parts[0], parts[-1]), -1))
    context.store.put_as(call.out, pairs, given)


def clear(context: Context, call: Call) -> None:
    """Constants in place of what was there."""
    target = call.writes
    if target is not None and context.store.is_data(target):
        context.store.write(target, [], 0)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES, move),
    "copy_": copy,
    **_ROW_RULES,
    **dict.fromkeys(("topk", "sort", "kthvalue", "mode"), chosen),
    "_pack_padded_sequence": packed,
    "view_as_complex": as_complex,
    "view_as_real": as_real,
    **dict.fromkeys(("zero_", "fill_", "normal_", "uniform_"), clear),
}
