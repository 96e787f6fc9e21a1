"""Which ranks to keep: those that hold an energy, or those that fit a number of parameters.

Plain arithmetic on spectra; nothing here knows a layer. The energy of a triplet is sigma^2, and
what is lost by keeping k of a layer's triplets is the share of the others in its sum of sigma^2:
relative, because layers differ in scale and a normalisation often follows them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerBudget:
    """What one layer (or several that share their factors) offers to a budget."""

    energies: tuple[float, ...]
    """Share of each triplet in the layer's sum of sigma^2, descending."""
    sides: int
    """m + n: the parameters that a triplet has in U and Vh."""
    groups: int = 1
    """Groups of a convolution, which have factors each and one common rank."""

    @classmethod
    def of(cls, S: Tensor, m: int, n: int) -> LayerBudget:
        """The budget of singular values (k) or (groups, k) of (m, n) matrices."""
        groups = S.shape[0] if S.dim() == 2 else 1
        return cls(tuple(_shares(S).tolist()), m + n, groups)

    def parameters(self, k: int) -> int:
        """Entries of U, Sigma and Vh at rank k."""
        return self.groups * k * (k + self.sides)

    def price(self, k: int) -> float:
        """Energy lost for each parameter saved by going from rank k to k - 1.

        It rises as k falls: the energies do, and the saving 2 k - 1 + m + n shrinks.
        """
        return self.energies[k - 1] / (self.parameters(k) - self.parameters(k - 1))


def rank_of_energy(S: Tensor, energy: float) -> int:
    """The smallest k whose triplets hold the share ``energy`` of the sum of sigma^2."""
    kept = _shares(S).cumsum(0)
    # Against the sum as it was rounded, so that energy=1 is reached.
    return min(int((kept < energy * kept[-1]).sum()) + 1, len(kept))


def ranks_within(layers: Sequence[LayerBudget], parameters: int) -> list[int]:
    """The ranks that fit a number of parameters at the least loss of relative energy.

    From all triplets on, the one with the lowest price (energy per parameter saved) is dropped
    until the rest fits. Prices within a layer rise as its rank falls, so at each total that this
    passes through no other choice of ranks has lost less. The last drop may save more than was
    needed; triplets that fit into what it left are then put back, the dearest first.

    Raises:
        ValueError: not even one triplet of each layer fits.
    """
    least = sum(layer.parameters(1) for layer in layers)
    if parameters < least:
        raise ValueError(f"{parameters} parameters; expected at least {least}")
    ranks = [len(layer.energies) for layer in layers]
    total = sum(layer.parameters(k) for layer, k in zip(layers, ranks, strict=True))
    prices = [(layer.price(k), i) for i, (layer, k) in enumerate(zip(layers, ranks, strict=True))]
    heapq.heapify(prices)
    dropped: list[int] = []
    while total > parameters:
        _, i = heapq.heappop(prices)
        if ranks[i] == 1:
            continue
        total -= layers[i].parameters(ranks[i]) - layers[i].parameters(ranks[i] - 1)
        ranks[i] -= 1
        dropped.append(i)
        heapq.heappush(prices, (layers[i].price(ranks[i]), i))
    for i in reversed(dropped):
        cost = layers[i].parameters(ranks[i] + 1) - layers[i].parameters(ranks[i])
        if total + cost <= parameters:
            ranks[i] += 1
            total += cost
    return ranks


def _shares(S: Tensor) -> Tensor:
    """Shares (k) of sigma^2, groups together; zeros for a zero matrix."""
    # Scaled first: the squares of 1e-30 and 1e30 have to fit.
    scaled = S.double() / S.max().double().clamp_min(torch.finfo(torch.float64).tiny)
    energies = scaled.square().reshape(-1, S.shape[-1]).sum(0).cpu()
    return energies / energies.sum().clamp_min(torch.finfo(torch.float64).tiny)
