"""Who wrote a sum or a product of activations, and what a reduction leaves of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from spectral_monitor.pairs.tracing.ledger import Ledger
from torch import Tensor

__all__ = ["Written", "joined", "reduced", "varies"]


@dataclass(frozen=True, slots=True)
class Written:
    """Labels of one operand, broadcast to the shape of the result."""

    layers: list[Tensor]
    positions: int = 0
    """Pixels of the operand where it is an image, else 0."""


def joined(ledger: Ledger, a: Written, b: Written, *, is_sum: bool) -> Written:
    """The writers of both operands.

    Of a sum the nearest alone, unless the ledger keeps the stream: where the branch of a residual
    block, x + f(x), has read what wrote x, the branch's last weight is the writer. A skip past a
    branch of fewer pixels, as in a UNet, counts: what it brings is not in the branch. Of a product
    of two activations (gates, squeeze-excite) all are writers. The same use of a weight in both
    terms of a sum, as in x cos + rotate(x) sin, counts at the places where the first has it.
    """
    first, second = a.layers, b.layers
    positions = max(a.positions, b.positions)
    if is_sum and not ledger.keeps_stream and first and second:
        mine, others = _uses(ledger, first), _uses(ledger, second)
        first = _without(ledger, first, _passed(ledger, mine, others - mine, positions))
        second = _without(ledger, second, _passed(ledger, others, mine - others, positions))
    return Written(_united(ledger, first, second, is_sum=is_sum), positions)


def _uses(ledger: Ledger, layers: Sequence[Tensor]) -> set[int]:
    return {use for layer in layers for use in ledger.uses(layer)}


def _passed(ledger: Ledger, writers: set[int], others: set[int], positions: int) -> set[int]:
    """The writers that one of the others has read on the way, and not past a narrower image."""
    passed = set()
    for use in writers:
        after = [other for other in others if ledger.past(other) >> use & 1]
        if after and not any(ledger.narrows(use, other, positions) for other in after):
            passed.add(use)
    return passed


def _without(ledger: Ledger, layers: Sequence[Tensor], uses: set[int]) -> list[Tensor]:
    """The layers without the labels of these uses."""
    if not uses:
        return list(layers)
    kept = []
    for layer in layers:
        out = torch.zeros_like(layer, dtype=torch.bool)
        for use in uses:
            out |= ledger.of_use(layer, use)
        left = torch.where(out, 0, layer)
        if bool(left.any()):
            kept.append(left)
    return kept


def _united(
    ledger: Ledger, first: Sequence[Tensor], second: Sequence[Tensor], *, is_sum: bool
) -> list[Tensor]:
    """All layers; a sum has one label of a use at each place, the first operand's."""
    layers = list(first)
    count = ledger.elements.count
    for layer in second:
        new = layer
        for other in first:
            same = new == other
            if is_sum:
                uses = (torch.div(x, count, rounding_mode="floor") for x in (new, other))
                same = (next(uses) == next(uses)) & (other > 0)
            new = torch.where(same, 0, new)
        if bool(new.any()):
            layers.append(new)
    return _packed(layers)


def _packed(layers: list[Tensor]) -> list[Tensor]:
    """Layers that are nowhere at the same place in one: what experts wrote for their tokens."""
    packed: list[Tensor] = []
    for layer in layers:
        for index, other in enumerate(packed):
            if not bool(((other > 0) & (layer > 0)).any()):
                packed[index] = other + layer
                break
        else:
            packed.append(layer)
    return packed


def reduced(ledger: Ledger, layer: Tensor, dims: Sequence[int], *, keepdim: bool) -> list[Tensor]:
    """What a sum over these dimensions leaves: each writer whose label is one along them.

    Matrices of a stack, such as experts, are a writer each.
    """
    dims = [dim % layer.dim() for dim in dims] or list(range(layer.dim()))
    if not layer.dim() or not layer.numel():
        return []
    kept, left = _one(layer, dims, keepdim)
    found = [kept] if bool(kept.any()) else []
    if left:
        for use in ledger.uses(layer):
            for part in ledger.by_matrix(torch.where(ledger.of_use(layer, use), layer, 0), use):
                own, _ = _one(part, dims, keepdim)
                own = torch.where(kept > 0, 0, own)
                if bool(own.any()):
                    found.append(own)
    return _packed(found)


def _one(layer: Tensor, dims: list[int], keepdim: bool) -> tuple[Tensor, bool]:
    """The label where there is but one along the dimensions, and whether others are left."""
    high = layer.amax(dims, keepdim=keepdim)
    none = torch.iinfo(torch.int64).max
    low = torch.where(layer > 0, layer, none).amin(dims, keepdim=keepdim)
    one = (low == high) & (high > 0)
    return torch.where(one, high, 0), bool((~one & (high > 0)).any())


def varies(layer: Tensor, dim: int) -> bool:
    """Whether some label is not the same along a dimension."""
    if layer.shape[dim] < 2:
        return False
    first = layer.narrow(dim, 0, 1)
    return bool((layer != first).any())
