"""Plain torch, on any device: diagonals of products without the products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_kernels.alignment.prepared import ComparedSpectra


class Alignments:
    """The alignments of pairs that stay where they are; see the compiled ones.

    Accumulated in float64. For clusters the whole product is formed.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Tensor, Tensor]],
        lines: Sequence[Tensor],
        cosines: Sequence[Tensor],
        first: Sequence[Tensor],
    ) -> None:
        self._pairs, self._lines, self._clusters = pairs, lines, (cosines, first)

    def run(self) -> None:
        """Fill ``lines`` and ``cosines``."""
        for (U, Vh), line in zip(self._pairs, self._lines, strict=True):
            k = line.shape[-1]
            product = U[..., :k].double() * Vh[..., :k, :].mT.double()
            line.copy_(product.sum(dim=-2).abs())
        # Without clusters there are none of these.
        for (U, Vh), cosine, first in zip(self._pairs, *self._clusters, strict=False):
            cosine.copy_(_cosine(U, Vh, first))


class Clusters:
    """``singular_value_clusters`` of spectra that stay where they are."""

    def __init__(self, spectra: ComparedSpectra) -> None:
        values, bounds, compared, lengths, unseen, follows, first, alone = spectra
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
