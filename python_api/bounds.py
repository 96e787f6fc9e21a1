r"""How far the numbers of a row can be from the truth.

Let sigma be the true values, s the computed ones, |s_i - sigma_i| <= d_i, N = sum s. Then, with
D = sum d:

* norms: D for the nuclear norm, sqrt(sum d^2) for the Frobenius norm, d_1 for the spectral one;
* entropy: p = s / N and p' = sigma / N' have the total variation distance T <= D / N (each of
  the two ways to normalise moves at most D), and |H(p) - H(p')| <= T ln(r - 1) - T ln T
  - (1 - T) ln(1 - T) (Audenaert, J. Phys. A 40, 2007, for diagonal states);
* stable rank: the quotient of the extremes;
* numerical rank: how many s lie within d of the threshold.

For ``method="exact"``, d = 8 eps sigma_1, the rounding level that the solvers are held to. For
``method="randomized"``, d comes from the mass that the k leading values leave over of the
Frobenius norm, which is known exactly (`estimate_from_leading`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from python_api.frame import Array, MatrixRow
from spectral_kernels.results import METRICS

__all__ = ["Estimate", "entropy_bound", "estimate_from_leading", "rounding_bounds"]


def entropy_bound(distance: float, r: int) -> float:
    """Largest change of an entropy of r terms at this total variation distance."""
    if math.isnan(distance):
        return math.nan
    if r <= 1 or distance <= 0:
        return 0.0
    if distance >= 1 - 1 / r:
        return math.log(r)
    spread = -distance * math.log(distance) - (1 - distance) * math.log1p(-distance)
    return distance * math.log(r - 1) + spread


def rounding_bounds(row: MatrixRow) -> dict[str, float]:
    """Bounds of a row whose singular values are all known to rounding."""
    values = row.singular_values
    eps = float(np.finfo(values.dtype).eps)
    top = row.spectral_norm
    delta = 8 * eps * top
    r = len(values)
    threshold = max(row.shape) * eps * top
    near = float(np.count_nonzero(np.abs(values - threshold) <= delta)) if top else 0.0
    entropy = entropy_bound(r * delta / row.nuclear_norm if row.nuclear_norm else 0.0, r)
    frobenius = math.sqrt(r) * delta
    return {
        "singular_values": delta,
        "effective_rank": entropy,
        "effective_rank_exp": row.effective_rank_exp * math.expm1(entropy),
        "stable_rank": _quotient_bound(row.frobenius_norm, frobenius, top, delta),
        "numerical_rank": near if row.finite else math.nan,
        "spectral_norm": delta,
        "nuclear_norm": r * delta,
        "frobenius_norm": frobenius,
    }


def _quotient_bound(frobenius: float, frobenius_error: float, top: float, error: float) -> float:
    """Largest error of frobenius^2 / top^2."""
    if not top:
        return 0.0
    if top <= error:
        return math.inf
    value = (frobenius / top) ** 2
    high = ((frobenius + frobenius_error) / (top - error)) ** 2
    low = (max(frobenius - frobenius_error, 0.0) / (top + error)) ** 2
    return max(high - value, value - low)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Values of a row from k leading triplets, each with its bound."""

    values: tuple[float, ...]
    """In the order of `spectral_kernels.results.METRICS`."""
    bounds: dict[str, float]


def estimate_from_leading(
    values: Array, frobenius: float, shape: tuple[int, int], entropy: tuple[float, float]
) -> Estimate:
    """What k leading values and the Frobenius norm prove about all ranks and norms.

    Args:
        values: (k,) leading singular values s of a projection U^T A, descending.
        frobenius: norm of the whole matrix, correct to rounding.
        shape: (m, n) of the matrix.
        entropy: `spectral_kernels.effective_rank_bounds` for ``values`` taken as exact.

    Returns:
        Midpoints of what is possible, half widths as bounds. The spectral norm, the stable rank
        and the numerical rank are those of the known values.
    """
    if not frobenius:
        return Estimate((0.0,) * len(METRICS), dict.fromkeys(("singular_values", *METRICS), 0.0))
    eps = float(np.finfo(values.dtype).eps)
    known = _Leading(values.astype(np.float64) / frobenius, min(shape), 8 * eps)
    low, high = known.entropy(entropy)
    top, top_error = float(known.s[0]), float(known.errors[0])
    stable = 1 / top**2
    stable_low = ((1 - 8 * eps) / (top + top_error)) ** 2
    stable_high = ((1 + 8 * eps) / (top * (1 - 8 * eps))) ** 2
    threshold = max(shape) * eps * top
    rank = int(np.count_nonzero(known.s > threshold))
    hidden = known.most_above(threshold) if rank == len(known.s) else 0
    nuclear_low, nuclear_high = known.nuclear_low * frobenius, known.nuclear_high * frobenius
    bounds = {
        "singular_values": float(known.errors.max()) * frobenius,
        "effective_rank": (high - low) / 2,
        "effective_rank_exp": (math.exp(high) - math.exp(low)) / 2,
        "stable_rank": max(stable_high - stable, stable - stable_low),
        "numerical_rank": float(hidden),
        "spectral_norm": top_error * frobenius,
        "nuclear_norm": (nuclear_high - nuclear_low) / 2,
        "frobenius_norm": 8 * eps * frobenius,
    }
    middle = ((low + high) / 2, (math.exp(low) + math.exp(high)) / 2, stable, float(rank),
              top * frobenius, (nuclear_low + nuclear_high) / 2, frobenius)  # fmt: skip
    return Estimate(middle, bounds)


class _Leading:
    """Leading values relative to the Frobenius norm, and what may lie beside them.

    With U^T A = diag(s) V^T, A = U U^T A + E and ||E||_F^2 = 1 - sum s^2 =: rho^2, so (Weyl)
    s_i <= sigma_i <= sqrt(s_i^2 + rho^2), and all true values together have rho^2 more mass
    than s. ``rounding`` (relative to s_1 for values, to sum s^2 for masses) comes on top.
    """

    def __init__(self, s: Array, r: int, rounding: float) -> None:
        mass = float(np.square(s).sum())
        k, self.q, self.r, self.s = len(s), r - len(s), r, s
        self.rho2 = max(1.0 - mass, 0.0) + rounding * mass
        slack = rounding * float(s[0])
        upper = np.sqrt(np.square(s) + self.rho2)
        self.errors = upper - s + slack
        # sigma - s has the 2-norm rho at most, since (sigma - s)^2 <= sigma^2 - s^2.
        self.lead = min(float(self.errors.sum()), math.sqrt(k * self.rho2) + k * slack)
        total = float(s.sum())
        # The sum of square roots is concave in the masses: least where one value takes all
        # that is free, and the largest gains least; largest where the tail is flat.
        self.nuclear_low = max(total - k * slack + float(upper[0] - s[0]), 1.0)
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
            spread = entropy_bound(self.lead / self.nuclear_low, self.r)
            return max(exact[0] - spread, 0.0), min(exact[1] + spread, math.log(self.r))
        spread = entropy_bound((self.lead + self._tail_shift()) / self.nuclear_low, self.r)
        low = max(exact[0] - spread, 2 * math.log(self.nuclear_low), 0.0)
        rounding = entropy_bound(len(self.s) * self._slack / self.nuclear_low, self.r)
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
