"""Every public function of a matrix, by name."""

from __future__ import annotations

import spectral_kernels as sk

TAKES_A_MATRIX = {
    "svd": sk.svd,
    "svdvals": sk.svdvals,
    "rsvd": lambda x: sk.rsvd(x, 1),
    "effective_rank": sk.effective_rank,
    "stable_rank": sk.stable_rank,
    "numerical_rank": sk.numerical_rank,
    "feature_rank": sk.feature_rank,
    "spectral_summary": sk.spectral_summary,
    "decompose": sk.decompose,
    "alignment_matrix": lambda x: sk.alignment_matrix(x, x),
    "alignment_diagonal": lambda x: sk.alignment_diagonal(x, x),
    "subspace_overlap": lambda x: sk.subspace_overlap(x, x),
    "bounds_from_residuals": lambda x: sk.bounds_from_residuals(x, x, x, x),
    "recompose": lambda x: sk.recompose(x, x, x),
    "usv_matmul": lambda x: sk.usv_matmul(x, x, x, x),
}
