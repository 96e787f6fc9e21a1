r"""How far the numbers of a row from k leading singular values can be from the truth.

What the values leave of the Frobenius norm is the mass of all others together, which is all that is
known of them (`estimate_from_leading`). Entropies are compared through the total variation distance
of sigma / sum sigma (`spectral_kernels.rank.entropy_change`). Rows from whole spectra have
`bounds_from_value_bounds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from spectral_monitor.step.frame import Array
from torch import Tensor

from spectral_kernels.entry.results import METRICS
from spectral_kernels.rank.entropy_change import entropy_change
from spectral_kernels.runtime.numerics import value_rounding


def rounding_of_mass(total: Any, top: Any, k: int, unit: float) -> Any:
    """How far sum s^2 is off at most where each of k values is by unit s_1; ``total`` is sum s.

    Numbers, or tensors of them.
    """
    slack = unit * top
    return slack * (2.0 * total + k * slack)


def leading_value_bounds(
    values: Tensor, frobenius: Tensor, value_bounds: Tensor, shape: tuple[int, int]
) -> Tensor:
    """`Estimate.value_bounds` of a batch, on any device and without reading a number of it.

    Args:
        values: (B, k) leading singular values.
        frobenius: (B,) float64 norms of the whole matrices.
        value_bounds: (B, k) float64 of |sigma_i - s_i|, as of `estimate_from_leading`.
        shape: (m, n) of the matrices.
    """
    unit = value_rounding(*shape, values.dtype)
    norm = torch.where(frobenius > 0, frobenius, 1.0).unsqueeze(-1)
    s, relative = values.double() / norm, value_bounds / norm
    top, total = s[:, :1], s.sum(dim=-1, keepdim=True)
    free = (1.0 - s.square().sum(dim=-1, keepdim=True)).clamp_min(0.0)
    free = free + rounding_of_mass(total, top, values.shape[-1], unit)
    bounds = torch.minimum((s.square() + free).sqrt() - s, relative) + unit * top
    return torch.where(frobenius.unsqueeze(-1) == 0, 0.0, bounds * norm)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Values of a row from k leading triplets, each with its bound."""

    values: tuple[float, ...]
    """In the order of `spectral_kernels.entry.results.METRICS`."""
    bounds: tuple[float, ...]
    """Of ``values``, in their order."""
    value_bounds: Array
    """(k,) of the singular values."""


def estimate_from_leading(
    values: Array,
    frobenius: float,
    shape: tuple[int, int],
    entropy: tuple[float, float],
    value_bounds: Array | None = None,
    *,
    rank: int | None = None,
) -> Estimate:
    """What k leading values and the Frobenius norm prove about all ranks and norms.

    Args:
        values: (k,) leading singular values s of a projection U^T A, descending.
        frobenius: norm of the whole matrix, correct to rounding.
        shape: (m, n) of the matrix.
        entropy: `spectral_kernels.bounds_from_leading_values` for ``values`` taken as exact.
        value_bounds: (k,) of |sigma_i - s_i| where more is known than the mass tells.
        rank: how many singular values are not zero at most, min(m, n) by default.

    Returns:
        Midpoints of what is possible, half widths as bounds. The spectral norm, the stable rank
        and the numerical rank are those of the known values.
    """
    if not frobenius:
        nothing = (0.0,) * len(METRICS)
        return Estimate(nothing, nothing, np.zeros(len(values)))
    eps = float(np.finfo(values.dtype).eps)
    errors = None if value_bounds is None else value_bounds / frobenius
    unit = value_rounding(*shape, torch.float64 if values.dtype == np.float64 else torch.float32)
    leading = _Leading(values.astype(np.float64) / frobenius, rank or min(shape), unit, errors)
    low, high = leading.entropy(entropy)
    top, top_error = float(leading.s[0]), float(leading.errors[0])
    stable = 1 / top**2
    stable_low = ((1 - unit) / (top + top_error)) ** 2
    stable_high = ((1 + unit) / (top * (1 - unit))) ** 2
    threshold = max(shape) * eps * top
    rank = int(np.count_nonzero(leading.s > threshold))
    hidden = leading.most_above(threshold) if rank == len(leading.s) else 0
    nuclear_low, nuclear_high = leading.nuclear_low * frobenius, leading.nuclear_high * frobenius
    bounds = (
        (high - low) / 2,
        (math.exp(high) - math.exp(low)) / 2,
        max(stable_high - stable, stable - stable_low),
        float(hidden),
        top_error * frobenius,
        (nuclear_high - nuclear_low) / 2,
        unit * frobenius,
    )
    middle = ((low + high) / 2, (math.exp(low) + math.exp(high)) / 2, stable, float(rank),
              top * frobenius, (nuclear_low + nuclear_high) / 2, frobenius)  # fmt: skip
    return Estimate(middle, bounds, leading.errors * frobenius)


class _Leading:
    """Leading values relative to the Frobenius norm, and what may lie beside them.

    With U^T A = diag(s) V^T, A = U U^T A + E and ||E||_F^2 = 1 - sum s^2 =: rho^2, so (Weyl)
    s_i <= sigma_i <= sqrt(s_i^2 + rho^2), and all true values together have rho^2 more mass
    than s. Rounding of every value comes on top, and its mass with it
    (`rounding_of_mass`).
    """

    def __init__(self, s: Array, r: int, unit: float, errors: Array | None) -> None:
        mass = float(np.square(s).sum())
        k, self.q, self.r, self.s = len(s), r - len(s), r, s
        slack = unit * float(s[0])
        rounding = rounding_of_mass(float(s.sum()), float(s[0]), k, unit)
        self.rho2 = max(1.0 - mass, 0.0) + rounding
        upper = np.sqrt(np.square(s) + self.rho2)
        self.errors = upper - s + slack
        if errors is not None:
            self.errors = np.minimum(self.errors, errors + slack)
        # sigma - s has the 2-norm rho at most, since (sigma - s)^2 <= sigma^2 - s^2.
        self.lead = min(float(self.errors.sum()), math.sqrt(k * self.rho2) + k * slack)
        total = float(s.sum())
        # The sum of square roots is concave in the masses: least where one value takes all
        # that is free, and the largest gains least; largest where the tail is flat. What is free
        # for certain is less than what may be.
        certain = max(1.0 - mass - rounding, 0.0)
        gained = math.sqrt(float(s[0]) ** 2 + certain) - float(s[0])
        self.nuclear_low = max(total - k * slack + gained, 1.0)
        self.fits = self.rho2 <= self.q * float(s[-1]) ** 2
        gain = math.sqrt(self.q * self.rho2) + k * slack if self.fits else math.inf
        self.nuclear_high = min(total + (gain if self.q else self.lead), math.sqrt(r))
        self._slack = slack

    def entropy(self, exact: tuple[float, float]) -> tuple[float, float]:
        """(low, high) of the entropy, from its bounds for leading values that are exact.

        High: free mass raises the entropy most in the tail, the smallest values, as
        dH / d(sigma^2) = -(ln p + H) / (2 N sigma) is largest there; so exact leading values
        with a flat tail are the worst case. Low: the collision entropy, 2 ln(N / F), or the
        exact case's bound less what the values and the tail may shift.
        """
        if self.q == 0:
            spread = entropy_change(self.lead / self.nuclear_low, self.r)
            return max(exact[0] - spread, 0.0), min(exact[1] + spread, math.log(self.r))
        spread = entropy_change((self.lead + self._tail_shift()) / self.nuclear_low, self.r)
        low = max(exact[0] - spread, 2 * math.log(self.nuclear_low), 0.0)
        rounding = entropy_change(len(self.s) * self._slack / self.nuclear_low, self.r)
        high = min(exact[1] + rounding, math.log(self.r)) if self.fits else math.log(self.r)
        return min(low, high), high

    def _tail_shift(self) -> float:
        """How far, in sum, the true tail may be from one that fits s exactly.

        That one has the mass rho^2 and values of at most s_k. The true one comes to it by
        clipping (q d_k at most) and by growing, where the mass grows by at least the square of
        the 2-norm of the move.
        """
        last, error = float(self.s[-1]), float(self.errors[-1])
        clipped = self.q * error * (2 * last + error)
        return self.q * error + math.sqrt(self.q * (self.rho2 + clipped))

    def most_above(self, threshold: float) -> int:
        """How many unknown values may exceed a threshold."""
        return min(self.q, int(self.rho2 / threshold**2))
