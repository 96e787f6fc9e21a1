"""Numbers that several rooms share, in one place each."""

from __future__ import annotations

DIRECT_SIDE = 384
"""The longest short side that compiled kernels take for vectors, for float64 values and for
tracking, beyond which blocked LAPACK wins."""

VALUE_ROUNDING = 8
"""How many units in the last place of sigma_1 a singular value may be off by the numerics contract;
see ``numerics.value_rounding``."""

SCORE_ENTRIES = 10
"""How many leading entries of a diagonal an alignment score averages (Yunis et al. 2024, Eq. 4)."""
