r"""What k leading singular values and the Frobenius norm prove about the effective rank.

The q = r - k unknown values t_j satisfy 0 <= t_j <= c = sigma_k and sum t_j^2 = T = F^2 - sum
sigma_i^2. With N the sum of all values and H(t) = ln N - (1/N) sum x ln x,

    dH/dt_j = -(ln p_j + H) / N,      p_j = t_j / N.                                     (1)

Write H for fixed T as a function of L = sum t_j in two steps: first the best and the worst tail
for given (L, T), then L.

Given (L, T), the extremes of -sum t ln t, whose derivative -ln t - 1 is strictly convex, are
known from the equal variable theorem (Cirtoaje, J. Inequal. Pure Appl. Math. 8, 2007): the
maximum has the form (c, .., c, y, x, .., x) with y >= x, the minimum (y, .., y, x, 0, .., 0) with
y >= x. In both the entries below c take two values x < y with multipliers ln t + 1 = a + b t, so
b = (ln y - ln x) / (y - x) > 0 and a = ln x + 1 - b x.

Along either family the envelope theorem gives

    dH/dL = (1 - a + ln N - H) / N = (b x - (ln p_x + H)) / N >= 0,                      (2)

because x is the smallest positive value of the whole spectrum, its surprisal -ln p_x is at least
their average H, and b x > 0. So H grows with L in both families, and the extremes over L are

    high: L largest,  sqrt(q T): every t_j = sqrt(T / q);
    low:  L smallest: floor(T / c^2) values equal to c, one carries the rest, the others are 0.

Both are spectra that fit the data, so neither bound can be improved. By (1) H grows with T too
(t_j has the largest surprisal), which makes it safe to lower T for ``low`` and to raise it for
``high`` by what rounding may have done to the given numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectral_kernels.entry import checks
from spectral_kernels.entry.arrays import Array, enter, kind, to_tensor


def bounds_from_leading_values(
    S_k: Array, frobenius_norm: Array | float, r: int
) -> tuple[Array, Array]:
    """Return bounds of the effective rank, from the leading singular values and the norm.

    The least and the largest entropy of all spectra that have these k values and this Frobenius
    norm; the theorem is in the head of ``spectral_kernels/rank/bounds.py``.

    Args:
        S_k: (..., k) the k leading singular values, descending, correct to rounding of their
            dtype. Estimates that are further off widen the truth, not these bounds.
        frobenius_norm: (...) or a number, the Frobenius norm of the whole matrix, correct to
            rounding of its dtype. float64 makes the bounds tighter where the tail is small.
        r: number of singular values in all, min(m, n) >= k.

    Returns:
        (low, high), each (...) float64: ``effective_rank`` (form "entropy") of every matrix with
        these data lies between, and each is attained but for rounding. Equal where k = r. From 0
        to ln r where a value is infinite, which says nothing; NaN where one is NaN.

    Raises:
        TypeError: integer or complex dtype.
        ValueError: k > r, k < 1, shapes that do not match, mixed devices or kinds.

    Example:
        >>> S = np.array([2.0, 1.0, 1.0, 0.5])  # the norm is 2.5
        >>> low, high = sk.bounds_from_leading_values(S[:2], 2.5, 4)
        >>> bool(low < sk.summarize_singular_values(S).effective_rank < high)
        True
    """
    (S,), leave = enter(S_k, "S_k")
    checks.check_dtype(S, "S_k")
    if S.dim() < 1 or not 1 <= S.shape[-1] <= r:
        raise ValueError(f"S_k has shape {tuple(S.shape)}; expected (..., k) with 1 <= k <= {r}")
    norm = _norm(frobenius_norm, S_k, S)
    low, high = _bounds(S.detach(), norm.detach(), r)
    pair: tuple[Array, Array] = leave([(low, high)])
    return pair


def _norm(given: Array | float, S_k: Array, S: Tensor) -> Tensor:
    if isinstance(given, (int, float)) or (not kind(given) and hasattr(given, "__float__")):
        return torch.full(S.shape[:-1], float(given), dtype=torch.float64, device=S.device)
    if kind(given) != kind(S_k):
        raise ValueError(
            f"S_k is a {kind(S_k)} array and frobenius_norm is {type(given).__name__}; expected "
            "one kind, or a number"
        )
    norm = to_tensor(given, "frobenius_norm")
    checks.check_dtype(norm, "frobenius_norm")
    checks.check_devices(S_k=S, frobenius_norm=norm)
    if norm.shape != S.shape[:-1]:
        raise ValueError(
            f"frobenius_norm has shape {tuple(norm.shape)}; expected {tuple(S.shape[:-1])} for "
            f"S_k of shape {tuple(S.shape)}"
        )
    return norm


def _bounds(S: Tensor, norm: Tensor, r: int) -> tuple[Tensor, Tensor]:
    eps_S, eps_norm = torch.finfo(S.dtype).eps, torch.finfo(norm.dtype).eps
    s, norm = S.double(), norm.double()
    # Relative to sigma_1, so that squares neither overflow nor vanish.
    top = s[..., :1]
    scale = torch.where(top > 0, top, 1.0)
    x = s / scale
    leading = (x * x).sum(dim=-1)
    whole = (norm / scale[..., 0]) ** 2
    q = r - s.shape[-1]
    c = x[..., -1]
    # Half an ulp in each value is a relative error of one eps in its square.
    doubt = eps_S * leading + eps_norm * whole + 4 * torch.finfo(torch.float64).eps * whole
    limit = q * c * c
    least = (whole - leading - doubt).clamp_min(0.0).minimum(limit)
    most = (whole - leading + doubt).clamp_min(0.0).minimum(limit)
    low = _lowest(x, c, least, q)
    high = _highest(x, most, q)
    # The same half ulps in the values themselves move the entropy by at most eps * H.
    slack = max(eps_S, 8 * torch.finfo(torch.float64).eps)
    low = (low - slack * (1 + low)).clamp_min(0.0)
    high = high.clamp_max(math.log(r))
    high = high + slack * (1 + high)
    zero = whole == 0
    low, high = torch.where(zero, 0.0, low), torch.where(zero, 0.0, high)
    bad = torch.isnan(s).any(dim=-1) | torch.isnan(norm)
    unknown = torch.isinf(s).any(dim=-1)
    low = torch.where(unknown, 0.0, low)
    high = torch.where(unknown, math.log(r) + slack * (1 + math.log(r)), high)
    return torch.where(bad, float("nan"), low), torch.where(bad, float("nan"), high)


def _xlogx(x: Tensor) -> Tensor:
    product: Tensor = torch.special.xlogy(x, x)
    return product


def _entropy(total: Tensor, weighted: Tensor) -> Tensor:
    """Return ln N - (1/N) sum x ln x, 0 where N is 0."""
    safe = torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, safe.log() - weighted / safe, 0.0)


def _highest(x: Tensor, tail: Tensor, q: int) -> Tensor:
    """Every unknown value equal: sqrt(T / q)."""
    t = (tail / max(q, 1)).sqrt()
    return _entropy(x.sum(dim=-1) + q * t, _xlogx(x).sum(dim=-1) + q * _xlogx(t))


def _lowest(x: Tensor, c: Tensor, tail: Tensor, q: int) -> Tensor:
    """As many unknown values equal to c as T allows, one with the rest, zeros."""
    square = torch.where(c > 0, c * c, 1.0)
    full = (tail / square).floor().clamp_max(q)
    rest = (tail - full * c * c).clamp_min(0.0).sqrt()
    total = x.sum(dim=-1) + full * c + rest
    return _entropy(total, _xlogx(x).sum(dim=-1) + full * _xlogx(c) + _xlogx(rest))
