"""The generalisation gap: training accuracy minus test accuracy, and when it is closed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from spectral_monitor.step.frame import Array

# 1 %, with room for the rounding of 1 - 0.99.
GAP = 0.01 + 1e-9


def is_closed(train: float, test: float, level: float) -> bool:
    """Whether training accuracy is at ``level`` and test accuracy at most 0.01 below it.

    The level is needed since at the start both are chance and the gap is closed for no merit.
    """
    return train >= level and train - test <= GAP


def closed_at(steps: NDArray[np.int64], train: Array, test: Array, level: float) -> int | None:
    """The first measured step at which `is_closed`; None where there was none.

    ``steps``, ``train`` and ``test`` are (T,); a NaN is not closed.
    """
    measured = zip(steps, train, test, strict=True)
    return next((int(step) for step, a, b in measured if is_closed(a, b, level)), None)
