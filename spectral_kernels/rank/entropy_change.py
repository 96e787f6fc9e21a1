"""How far apart the entropies of two distributions can be: Audenaert's bound.

At total variation distance T, of r terms each,

    |H - H'| <= T ln(r - 1) - T ln T - (1 - T) ln(1 - T)

(J. Phys. A 40, 2007, for diagonal states), and ln r where T >= 1 - 1 / r. The kernels have it in
csrc/include/entropy_bounds.h and ``triton_bound_kernels.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy_change(distance: float, r: int) -> float:
    """Return the largest change of an entropy of r terms at a total variation distance."""
    if math.isnan(distance):
        return math.nan
    if r <= 1 or distance <= 0:
        return 0.0
    if distance >= 1 - 1 / r:
        return math.log(r)
    spread = -distance * math.log(distance) - (1 - distance) * math.log1p(-distance)
    return distance * math.log(r - 1) + spread


def entropy_changes(distances: Tensor, r: int) -> Tensor:
    """Return the same of many distances (...) float64."""
    if r == 1:
        return torch.zeros_like(distances)
    t = distances.clamp(0.0, 1.0 - 1.0 / r)
    entropy: Tensor = torch.special.entr(t) + torch.special.entr(1.0 - t)
    return t * math.log(r - 1) + entropy
