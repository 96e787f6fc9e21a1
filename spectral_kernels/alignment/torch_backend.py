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
        self.out = torch.cat(diagonals(pairs, k))

    def run(self) -> Tensor:
        """Return ``out``, all diagonals one after the other; the next run overwrites them."""
        return self.out.copy_(torch.cat(diagonals(self._pairs, self._k)))


class ClusterCosines:
    """``cluster_cosines`` of matrices of one dtype and of clusters that stay where they are."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], first: list[Tensor]) -> None:
        self._pairs, self._first = pairs, first
        self.out = pairs[0][0].new_zeros(2, sum(map(len, first)))

    def run(self) -> Tensor:
        """Return ``out`` (2, sum of counts): diagonals and cosines; the next run overwrites it."""
        for row, parts in zip(self.out, cluster_cosines(self._pairs, self._first), strict=True):
            row.copy_(torch.cat(parts))
        return self.out


class Clusters:
    """``singular_value_clusters`` of spectra that stay where they are; see the compiled one."""

    def __init__(
        self,
        values: Tensor,
        bounds: Tensor,
        compared: Tensor,
        lengths: list[int],
        unseen: list[int],
        follows: list[bool],
        first: Tensor,
        alone: Tensor,
    ) -> None:
        blocks = (values, bounds, *compared, first, alone)
        self._parts = [torch.split(x, lengths) for x in blocks]
        self._known = list(zip(unseen, follows, strict=True))

    def run(self) -> None:
        """Find the clusters of the values as they are now."""
        for s, b, other, error, first, alone, (unseen, follow) in zip(
            *self._parts, self._known, strict=True
        ):
            s = s.double()
            starts, are_alone = find_clusters(s, joint_radius(s, b, other, error), other)
            first.copy_(starts)
            alone.copy_(are_alone)
            if unseen >= 0:
                # No index is read: on a GPU that would wait for the device.
                alone.logical_and_(first < (first[unseen - 1 : unseen] if unseen else 0))
            if follow:
                other.copy_(torch.where(s.isfinite(), s, other))
                error.copy_(torch.where(s.isfinite(), b, error))


def joint_radius(S: Tensor, bounds: Tensor, other: Tensor, other_bounds: Tensor) -> Tensor:
    """Return how far values and those they are compared with may have moved or be wrong, (..., k).

    Both errors, and the largest distance |S - other| of a value and its neighbours; NaN is none.
    """
    moved = (S - other).abs().nan_to_num(0.0, torch.inf)
    near = torch.nn.functional.pad(moved, (1, 1))
    error = other_bounds.where(~other.isnan(), 0.0)
    return bounds + error + torch.maximum(torch.maximum(near[..., :-2], near[..., 2:]), moved)


def find_clusters(S: Tensor, radius: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the index of the first value of each value's cluster, and which are identifiable.

    (..., k) each; unchecked. With another spectrum, values belong together where they do in one
    of the two.
    """
    begins = torch.ones_like(S, dtype=torch.bool)
    positive = torch.ones_like(begins)
    for spectrum in (S,) if other is None else (S, other):
        low, high = spectrum - radius, spectrum + radius
        # A NaN joins nothing.
        begins[..., 1:] &= ~(low[..., :-1] <= high[..., 1:])
        positive &= ~(low <= 0)
    positive &= ~(S - radius).isnan()
    ends = torch.ones_like(begins)
    ends[..., :-1] = begins[..., 1:]
    k = S.shape[-1]
    index = begins * torch.arange(k, device=S.device)
    return (index.cummax(dim=-1).values if k else index), begins & ends & positive


def _cosine(U: Tensor, Vh: Tensor, first: Tensor) -> Tensor:
    k = first.shape[-1]
    together = first.unsqueeze(-1) == first.unsqueeze(-2)
    squares = (Vh[..., :k, :].double() @ U[..., :k].double()).square()
    # Not a product with the mask: a NaN of another cluster would come through.
    own = torch.where(together, squares, 0.0).sum(dim=-1)
    totals = torch.where(together, own.unsqueeze(-2), 0.0).sum(dim=-1)
    return (totals / together.sum(dim=-1)).sqrt().to(U.dtype)
