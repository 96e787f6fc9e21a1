r"""Differences of matrices between two steps, of decomposed ones without forming either.

With W_i = U_i Sigma_i V_i, a triangle of dU = U_1 - U_0 and so on, no sum of large terms:

    W_1 - W_0 = dU Sigma_1 V_1 + U_0 dSigma V_1 + U_0 Sigma_0 dV
              = [dU  U_0] [Sigma_1     0   ] [V_1]
                          [dSigma   Sigma_0] [dV ]

which is a product of factors again, of 2 k columns. Its terms are as small as the difference: what
is lost is the rounding of the stored factors, as the rounding of a stored weight is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spectral_monitor.model.matrix import Kept
from torch import Tensor

from spectral_kernels.entry.results import Decomposed
from spectral_kernels.runtime.numerics import result_dtype


def difference(now: Kept, before: Kept) -> Kept:
    """W_1 - W_0: a tensor, or factors of twice the columns."""
    if isinstance(now, Decomposed):
        assert isinstance(before, Decomposed)
        U, Sigma, Vh = (a - b.to(a.device) for a, b in zip(now, before, strict=True))
        U_0, Sigma_0 = (b.to(Sigma) for b in before[:2])
        low = torch.cat([Sigma, Sigma_0], dim=1)
        high = torch.cat([now.Sigma.to(Sigma), torch.zeros_like(Sigma)], dim=1)
        return Decomposed(
            torch.cat([U, U_0], dim=1), torch.cat([high, low]), torch.cat([now.Vh.to(Vh), Vh])
        )
    assert isinstance(before, Tensor)
    return now - before.to(now.device)


def unknown(now: Kept) -> Kept:
    """NaN of the shape that `difference` gives."""
    if isinstance(now, Decomposed):
        (m, k), n = now.U.shape, now.Vh.shape[1]
        shapes = (m, 2 * k), (2 * k, 2 * k), (2 * k, n)
        return Decomposed(*(_nan(x, shape) for x, shape in zip(now, shapes, strict=True)))
    return _nan(now, tuple(now.shape))


def remembered(now: Kept, place: Kept | None) -> Kept:
    """A copy in the dtype of results, in ``place`` where that has its shape."""
    if isinstance(now, Decomposed):
        places: Sequence[Tensor | None] = (None,) * 3
        if isinstance(place, Decomposed):
            places = place
        return Decomposed(*(_copied(x, old) for x, old in zip(now, places, strict=True)))
    return _copied(now, place if isinstance(place, Tensor) else None)


def _nan(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_full(shape, float("nan"), dtype=result_dtype(like.dtype))


def _copied(x: Tensor, place: Tensor | None) -> Tensor:
    dtype = result_dtype(x.dtype)
    if place is None or (place.dtype, place.device) != (dtype, x.device):
        return x.to(dtype, copy=True).contiguous()
    return place.copy_(x)
