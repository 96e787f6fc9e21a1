"""Plain torch, on any device: diagonals of products without the products."""

from __future__ import annotations

import torch
from torch import Tensor


def diagonals(pairs: list[tuple[Tensor, Tensor]], k: int) -> list[Tensor]:
    """Return |sum_a U[a, i] Vh[i, a]| for i < k, of each pair U (..., m, r), Vh (..., r', m).

    Accumulated in float64.
    """
    return [_diagonal(U, Vh, min(k, U.shape[-1], Vh.shape[-2])) for U, Vh in pairs]


def cluster_cosines(
    pairs: list[tuple[Tensor, Tensor]], first: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the diagonals and ||U_C^T V_C||_F / sqrt(|C|) of every index's cluster C.

    ``first`` (..., k) int64: the first index of each vector's cluster, ascending. The whole
    product is formed, in float64.
    """
    lines = [_diagonal(U, Vh, f.shape[-1]) for (U, Vh), f in zip(pairs, first, strict=True)]
    return lines, [_cosine(U, Vh, f) for (U, Vh), f in zip(pairs, first, strict=True)]


def _diagonal(U: Tensor, Vh: Tensor, k: int) -> Tensor:
    product = U[..., :k].double() * Vh[..., :k, :].mT.double()
    return product.sum(dim=-2).abs().to(U.dtype)


class Diagonals:
    """``diagonals`` of matrices U (m, r), Vh (r', m) of one dtype that stay where they are."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], k: int) -> None:
        self._pairs, self._k = pairs, k

    def run(self) -> Tensor:
        """Return all diagonals, one after the other."""
        return torch.cat(diagonals(self._pairs, self._k))


class ClusterCosines:
    """``cluster_cosines`` of matrices of one dtype and of clusters that stay where they are."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], first: list[Tensor]) -> None:
        self._pairs, self._first = pairs, first

    def run(self) -> Tensor:
        """Return (2, sum of counts): diagonals and cosines, one after the other."""
        lines, cosines = cluster_cosines(self._pairs, self._first)
        return torch.stack([torch.cat(lines), torch.cat(cosines)])


class Clusters:
    """``singular_value_clusters`` of spectra that stay where they are; see the compiled one."""

    def __init__(
        self,
        values: Tensor,
        bounds: Tensor,
        last: Tensor,
        lengths: list[int],
        open_ended: list[bool],
        first: Tensor,
        alone: Tensor,
    ) -> None:
        self._parts = [torch.split(x, lengths) for x in (values, bounds, last, first, alone)]
        self._open = open_ended

    def run(self) -> None:
        """Find the clusters of the values as they are now."""
        for s, b, last, first, alone, is_open in zip(*self._parts, self._open, strict=True):
            s = s.double()
            radius = b + (s - last).abs().where(~last.isnan(), 0.0)
            found, known = find_clusters(s, radius)
            first.copy_(found)
            alone.copy_(known)
            if is_open:
                # No index is read: on a GPU that would wait for the device.
                alone.logical_and_(first < first[-1:])
            last.copy_(torch.where(s.isfinite(), s, last))


def find_clusters(S: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the first value of each value's cluster, and which are identifiable.

    (..., k) each; unchecked.
    """
    low, high = S - radius, S + radius
    # A NaN joins nothing.
    begins = torch.ones_like(low, dtype=torch.bool)
    begins[..., 1:] = ~(low[..., :-1] <= high[..., 1:])
    ends = torch.ones_like(begins)
    ends[..., :-1] = begins[..., 1:]
    k = S.shape[-1]
    index = begins * torch.arange(k, device=S.device)
    return (index.cummax(dim=-1).values if k else index), begins & ends & (low > 0)


def _cosine(U: Tensor, Vh: Tensor, first: Tensor) -> Tensor:
    k = first.shape[-1]
    together = first.unsqueeze(-1) == first.unsqueeze(-2)
    squares = (Vh[..., :k, :].double() @ U[..., :k].double()).square()
    # Not a product with the mask: a NaN of another cluster would come through.
    own = torch.where(together, squares, 0.0).sum(dim=-1)
    totals = torch.where(together, own.unsqueeze(-2), 0.0).sum(dim=-1)
    return (totals / together.sum(dim=-1)).sqrt().to(U.dtype)
