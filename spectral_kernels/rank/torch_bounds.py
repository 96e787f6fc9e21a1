"""Plain torch, on any device: the bounds that ``rank.summary_bounds`` derives, in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_kernels.rank.entropy_change import entropy_changes

_PEAK = math.exp(-1.0)
_SMALL = math.exp(-2.0)


class _Errors(NamedTuple):
    """Values and errors relative to the largest value of each spectrum."""

    x: Tensor
    b: Tensor
    first: Tensor
    total: Tensor
    norm: Tensor


def bound_table(S: Tensor, bounds: Tensor, norm: Tensor, table: Tensor, rtol: float) -> Tensor:
    """Return the bounds (..., 7) of a summary ``table`` (..., 7) of S (..., r)."""
    r = S.shape[-1]
    if r == 0:
        return torch.zeros_like(table)
    entropy, rank, stable, _, top, nuclear, frobenius = table.unbind(-1)
    some = top > 0
    scale = torch.where(some, top, 1.0)
    errors = _errors(S, bounds, norm, scale)
    change = _entropy_bound(errors, entropy, r)
    share = errors.total / _positive(errors.x.sum(dim=-1))
    open_ended = ~some | (share >= 1.0)
    change = torch.where(open_ended, torch.maximum(entropy, math.log(r) - entropy), change)
    low = torch.where(open_ended, 0.0, (rank * torch.exp(-change)).clamp_min(1.0))
    high = torch.where(open_ended, float(r), (rank * torch.exp(change)).clamp_max(r))
    rounding = torch.finfo(S.dtype).eps + (r + 8) * 2.0**-51
    radius = rtol * errors.b[..., :1] + errors.b
    bounds_of_metrics = torch.stack(
        (
            change + rounding * (1.0 + math.log(r)),
            torch.maximum(high - rank, rank - low) + rounding * r,
            _stable_rank_bound(stable, errors, r) + rounding * stable,
            ((errors.x - rtol).abs() <= radius).sum(dim=-1).double(),
            errors.first * scale + rounding * top,
            errors.total * scale + rounding * nuclear,
            errors.norm * scale + rounding * frobenius,
        ),
        dim=-1,
    )
    info = torch.finfo(S.dtype)
    zero = ~some & (bounds.amax(dim=-1) <= info.smallest_normal * info.eps)
    is_given = torch.isfinite(top) & (bounds >= 0).all(dim=-1) & (norm >= 0)
    bounds_of_metrics = torch.where(zero.unsqueeze(-1), 0.0, bounds_of_metrics)
    return torch.where(is_given.unsqueeze(-1), bounds_of_metrics, float("nan"))


def _errors(S: Tensor, bounds: Tensor, norm: Tensor, scale: Tensor) -> _Errors:
    x, b = S.double() / scale.unsqueeze(-1), bounds / scale.unsqueeze(-1)
    all_errors = torch.minimum(norm / scale, b.norm(dim=-1))
    first = torch.minimum(b[..., 0], all_errors)
    total = torch.minimum(b.sum(dim=-1), math.sqrt(S.shape[-1]) * all_errors)
    return _Errors(x, b, first, total, all_errors)


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)


def _entropy_bound(errors: _Errors, entropy: Tensor, r: int) -> Tensor:
    """Return the smallest of the three bounds of the entropy; any number where B >= 1."""
    unit = _positive(errors.x.sum(dim=-1))
    p, b = errors.x / unit.unsqueeze(-1), errors.b / unit.unsqueeze(-1)
    share = errors.total / unit
    expansion = _expansion(p, b, entropy, errors.norm / unit, share)
    most = torch.maximum(entropy, math.log(r) - entropy)
    return torch.minimum(torch.minimum(expansion, entropy_changes(share, r)), most)


def _expansion(p: Tensor, b: Tensor, entropy: Tensor, norm: Tensor, share: Tensor) -> Tensor:
    inside = (b <= p) & (p > 0)
    outside = ~inside & (b > 0)
    safe = torch.where(inside, p, 1.0)
    g = torch.where(inside, safe.log() + entropy.unsqueeze(-1), 0.0).abs()
    error = torch.where(inside, b, 0.0)
    linear = torch.minimum((g * error).sum(dim=-1), g.norm(dim=-1) * norm)
    second = (error * error / safe).sum(dim=-1)
    second = torch.minimum(second, norm * norm / safe.amin(dim=-1))
    count = outside.sum(dim=-1).double()
    each = norm / _positive(count).sqrt()
    rest = torch.minimum(torch.where(outside, b, 0.0).sum(dim=-1), count * each)
    change = torch.where(outside, _surprisal_change(p, b), 0.0).sum(dim=-1)
    together = count * torch.special.entr(each)
    change = torch.where(norm <= _SMALL, torch.minimum(change, together), change)
    first: Tensor = linear + (1.0 - entropy).abs() * rest + change
    return (first + torch.maximum(second, share * share)) / (1.0 - share)


def _surprisal_change(p: Tensor, b: Tensor) -> Tensor:
    """Return the largest change of -x ln x as x >= 0 moves from p by at most b."""
    low, high = (p - b).clamp_min(0.0), p + b
    here, at_low, at_high = (torch.special.entr(x) for x in (p, low, high))
    around = (low < _PEAK) & (high > _PEAK)
    most = torch.where(around, _PEAK, torch.maximum(at_low, at_high))
    return torch.maximum(most - here, here - torch.minimum(at_low, at_high))


def _stable_rank_bound(stable: Tensor, errors: _Errors, r: int) -> Tensor:
    """Return the largest error of F^2 / s_1^2 = 1 + (norm of the others)^2 / s_1^2, at most r."""
    others, first, norm = (stable - 1.0).clamp_min(0.0).sqrt(), errors.first, errors.norm
    above = (others + norm) / (1.0 - first)
    below = (others - norm).clamp_min(0.0) / (1.0 + first)
    high, low = (1.0 + above * above).clamp_max(r), 1.0 + below * below
    bound = torch.maximum(high - stable, stable - low).clamp_min(0.0)
    return torch.where(first < 1.0, bound, torch.maximum(stable, r - stable))
