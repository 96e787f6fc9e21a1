"""The exact solution of matrices that are tracked on a device, in place of vectors that are lost.

Without a truth value that the host would need: a matrix with NaN or Inf keeps what it has, by
selection. New vectors take the signs and the names of the old ones that they resemble.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.runtime import dispatch, numerics
from spectral_kernels.tracking.whole.groups import Group, Member

_UNIT = torch.finfo(torch.float64).eps / 2
# Exponents beyond which sigma_1 <= sqrt(m n) max|a| may overflow float32, with room to spare.
_HUGE = 96


def solve_anew(
    A: Tensor, indices: list[int], group: Group, member: Member, solved: Tensor | None
) -> None:
    """Give the group the vectors of A[indices] (B, m, n), and count those that had some in solved.

    The vectors come from the solver for A's own type and are made orthonormal in float64, which
    leaves them as near the truth as that solver is: the next update measures how near, and turns
    them where that is not enough.
    """
    chosen = torch.tensor(indices).to(A.device)
    places = chosen + member.start
    given = _within_range(A[chosen].to(numerics.result_dtype(A.dtype)))
    U, S, Vh = dispatch.backend("svd", A.device.type).svd([given])[0]
    finite = torch.isfinite(S).all(dim=-1)
    old, names = group.vectors[places], group.names[places]
    started = names[:, -1] > 0
    V = _orthonormal((Vh.mT if member.tall else U).double())
    signs, fresh, nearest = _resemblance(old, V)
    V = V * torch.where(started[:, None], signs, 1.0)[:, None, :]
    where_finite = finite[:, None, None]
    group.vectors[places] = torch.where(where_finite, V, old)
    group.drift[places] = torch.where(finite, _departure_bound(V), group.drift[places])
    followed = _follow(names, fresh, nearest)
    first = torch.arange(group.r + 1, device=A.device).expand_as(names)
    new_names = torch.where(started[:, None], followed, first)
    group.names[places] = torch.where(finite[:, None], new_names, names)
    # What the vectors of zero values start from.
    long = (U if member.tall else Vh.mT).mT
    group.long[places] = torch.where(where_finite, long, group.long[places])
    group.fresh[places] = torch.where(finite, 1, group.fresh[places])
    if solved is not None:
        solved += (finite & started).sum()


def _within_range(A: Tensor) -> Tensor:
    """Return A (B, m, n), huge matrices over a power of two: their values would overflow.

    Those with NaN or Inf stay as they are.
    """
    largest = torch.linalg.vector_norm(A, float("inf"), dim=(-2, -1))
    exponent = torch.frexp(torch.where(torch.isfinite(largest), largest, 1.0)).exponent
    huge = torch.where(exponent > _HUGE, exponent, 0)
    return numerics.scale(A, -huge[:, None, None])


def _orthonormal(V: Tensor) -> Tensor:
    """Return a Newton-Schulz step of V (B, r, r), which squares what is wrong with it."""
    return 1.5 * V - 0.5 * (V @ (V.mT @ V))


def _departure_bound(V: Tensor) -> Tensor:
    """Return a bound (B,) of ||V^T V - I||_2, the rounding of its products included."""
    r = V.shape[-1]
    departure = V.mT @ V - torch.eye(r, dtype=V.dtype, device=V.device)
    rows = departure.abs().sum(dim=-1).amax(dim=-1)
    norm = torch.minimum(torch.linalg.matrix_norm(departure), rows)
    return (1.0 + 1e-12) * norm + 2.0 * r * (r * _UNIT)


def _resemblance(old: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the signs (B, r) towards the old columns, which are new, and which are nearest."""
    cosines = old.mT @ V
    best, nearest = cosines.abs().max(dim=-2)
    signs = torch.where(cosines.gather(-2, nearest[:, None])[:, 0] < 0, -1.0, 1.0)
    return signs.to(V.dtype), best.square() <= 0.5, nearest


def _follow(names: Tensor, fresh: Tensor, nearest: Tensor) -> Tensor:
    """Return names (B, r + 1) after a solution: the nearest vector's, or one not used before."""
    next_name = names[:, -1:]
    numbers = next_name + fresh.cumsum(dim=-1) - 1
    old = names.gather(-1, nearest)
    given = torch.where(fresh, numbers, old)
    return torch.cat((given, next_name + fresh.sum(dim=-1, keepdim=True)), dim=-1)
