r"""What an estimate from leading singular values tells of another matrix with nearly the same ones.

The estimate is of c, the singular values of a core; sigma (r) are those of the matrix, and
||sigma - c||_2 <= e. Then no value and no Frobenius norm moves by more than e, a sum by more than
sqrt(r) e, an entropy by more than at the total variation distance sqrt(r) e / sum c
(`spectral_kernels.rank.entropy_change`), and the root of the stable rank, ||c|| / c_1, to between
(||c|| -+ e) / (c_1 +- e).
"""

from __future__ import annotations

import math

import numpy as np
from spectral_monitor.step.bounds import Estimate
from spectral_monitor.step.frame import Array

from spectral_kernels.rank.entropy_change import entropy_change


def moved(
    estimate: Estimate, values: Array, shape: tuple[int, int], r: int, error: float
) -> Estimate:
    """The estimate with bounds for the matrix.

    Args:
        estimate: of the core.
        values: (k,) its leading singular values.
        shape: (m, n) of the matrix.
        r: how many singular values are not zero at most.
        error: e.
    """
    _, exponential, stable, _, spectral, nuclear, _ = estimate.values
    of = estimate.bounds
    total, top = nuclear - of[5], spectral - of[4]
    spread, grown = math.log(r), float(r)
    if total > 0:
        spread = entropy_change(math.sqrt(r) * error / total, r)
        # e^H is convex: it grows most above.
        grown = (exponential + of[1]) * math.expm1(spread)
    threshold = max(shape) * float(np.finfo(values.dtype).eps)
    gaps = np.abs(values.astype(np.float64) - threshold * spectral)
    bounds = (
        of[0] + spread,
        min(of[1] + grown, float(r)),
        min(_stable(stable, of[2], error / top), float(r)) if top > error else float(r),
        of[3] + float(np.count_nonzero(gaps <= (1 + threshold) * error)),
        of[4] + error,
        of[5] + math.sqrt(r) * error,
        of[6] + error,
    )
    return Estimate(estimate.values, bounds, estimate.value_bounds + error)


def _stable(stable: float, bound: float, error: float) -> float:
    """The bound of a stable rank, for an error in units of the least spectral norm."""
    high = ((math.sqrt(stable + bound) + error) / (1 - error)) ** 2
    low = (max(math.sqrt(max(stable - bound, 0.0)) - error, 0.0) / (1 + error)) ** 2
    return max(high - stable, stable - low)
