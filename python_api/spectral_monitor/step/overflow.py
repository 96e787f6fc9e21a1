"""Numbers of finite matrices whose singular values or norms are beyond the range of their type.

Ranks do not change with the scale: they, and the norms as Python's numbers, are those of the matrix
over a power of two, which is solved from scratch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.step.bounds import Estimate
from spectral_monitor.step.frame import Array
from spectral_monitor.step.spectra import rounding
from torch import Tensor

from spectral_kernels.entry.results import METRICS, Decomposed
from spectral_kernels.factored.op import recompose
from spectral_kernels.rank.overflow import scaled
from spectral_kernels.rank.summary_bounds import BoundedSummaries
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.svd.op import svdvals_list

_NORMS = np.array([name.endswith("_norm") for name in METRICS])


def table_anew(matrix: Matrix) -> Array:
    """(2, 7) float64: the metrics of the matrix as it is now, and their bounds."""
    S, exponent = _values(matrix)
    metrics = (
        BoundedSummaries(*rounding([S], [matrix.shape]), [matrix.shape]).run()[:, 0].cpu().numpy()
    )
    with np.errstate(over="ignore"):
        table: Array = np.where(_NORMS, np.ldexp(metrics, exponent), metrics)
    return table


def leading_anew(matrix: Matrix, k: int) -> tuple[Tensor, float, int]:
    """Its k leading values and its Frobenius norm, both over 2**exponent, and the exponent."""
    S, exponent = _values(matrix)
    return S[:k].cpu(), float(torch.linalg.vector_norm(S.double())), exponent


def rescaled(estimate: Estimate, exponent: int) -> Estimate:
    """What is known of a matrix from that of the matrix over 2**exponent."""
    with np.errstate(over="ignore"):
        values, bounds = (
            tuple(np.where(_NORMS, np.ldexp(numbers, exponent), numbers).tolist())
            for numbers in (estimate.values, estimate.bounds)
        )
        errors = np.ldexp(estimate.value_bounds, exponent)
    return replace(estimate, values=values, bounds=bounds, value_bounds=errors)


def _values(matrix: Matrix) -> tuple[Tensor, int]:
    kept = matrix.read()
    if isinstance(kept, Decomposed):
        # Factors within the range may have a product beyond it.
        kept = torch.as_tensor(recompose(*(x.double() for x in kept)))
    A, exponent = scaled(kept.detach())
    return svdvals_list([A.to(result_dtype(A.dtype))])[0], int(exponent)
