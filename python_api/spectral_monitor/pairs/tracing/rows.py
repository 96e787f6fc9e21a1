"""Rows added at given places: what experts wrote for their tokens, or neighbours in a graph."""

from __future__ import annotations

import torch
from spectral_monitor.pairs.tracing.calls import Call, words
from spectral_monitor.pairs.tracing.context import Context, Rule, here
from spectral_monitor.pairs.tracing.joining import Written, joined
from torch import Tensor

__all__ = ["RULES", "accumulate"]


def add_rows(context: Context, call: Call) -> None:
    """``index_add`` and ``index_reduce``: an index for each row."""
    target, source, index = (call.tensor(name) for name in ("self", "source", "index"))
    if target is None or source is None or index is None:
        context.end(call)
        return
    _add(context, call, target, source, here(index), int(call.arguments["dim"]))


def scatter_rows(context: Context, call: Call) -> None:
    """``scatter_add`` and ``scatter_reduce``, where all entries of a row have its index."""
    target, source, index = (call.tensor(name) for name in ("self", "src", "index"))
    if target is None or source is None or index is None or not index.numel():
        context.end(call)
        return
    dim, places = int(call.arguments["dim"]) % index.dim(), here(index)
    row = places
    for other in range(index.dim()):
        if other != dim:
            row = row.narrow(other, 0, 1)
    if not bool((places == row).all()) or any(
        index.shape[d] != target.shape[d] for d in range(index.dim()) if d != dim
    ):
        context.end(call)
        return
    used = source[tuple(slice(size) for size in index.shape)]
    _add(context, call, target, used, row.flatten(), dim)


def accumulate(context: Context, call: Call) -> None:
    """``index_put`` that adds, by one index for each row."""
    target, source = call.tensor("self"), call.tensor("values")
    indices = [(d, i) for d, i in enumerate(call.arguments["indices"]) if i is not None]
    if target is None or source is None or len(indices) != 1 or indices[0][1].dim() != 1:
        context.end(call)
        return
    dim, index = indices[0]
    if index.dtype == torch.bool or source.dim() != target.dim():
        context.end(call)
        return
    _add(context, call, target, source, here(index).long(), dim)


def _add(
    context: Context, call: Call, target: Tensor, source: Tensor, index: Tensor, dim: int
) -> None:
    layers, new = context.store.layers(target), context.store.layers(source)
    for rows in _rounds(index, _kinds(new, dim, len(index))):
        at = index[rows]
        ours = Written([x.index_select(dim, rows) for x in new])
        old = Written([x.index_select(dim, at) for x in layers])
        found = joined(context.ledger, old, ours, is_sum=True).layers
        while len(layers) < len(found):
            layers.append(torch.zeros(target.shape, dtype=torch.int64))
        layers = [
            x.index_copy(dim, at, found[i]) if i < len(found) else x.index_fill(dim, at, 0)
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


RULES: dict[str, Rule] = {
    **dict.fromkeys(words("index_add index_add_ index_reduce index_reduce_"), add_rows),
    **dict.fromkeys(words("scatter_add scatter_add_ scatter_reduce scatter_reduce_"), scatter_rows),
}
