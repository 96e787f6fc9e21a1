"""Ranks of finite matrices whose singular values are beyond the range of their type.

Ranks do not change with the scale: they are those of the matrix over a power of two, whose largest
entry is near one. Norms change by that power, in float64, and overflow where they are too large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spectral_kernels.entry.results import METRICS
from spectral_kernels.runtime import numerics

_NORMS = [name.endswith("_norm") for name in METRICS]


def overflowed(spectra: Sequence[Tensor], tables: Sequence[Tensor]) -> list[int]:
    """Return which tables (..., 7) are NaN since values (..., r) on the CPU are infinite.

    None on a GPU, where the answer would have to be waited for, and while a graph is traced or
    compiled, where there is none.
    """
    if not spectra or spectra[0].device.type != "cpu":
        return []
    if torch.compiler.is_compiling() or type(spectra[0]) is not Tensor:
        return []
    # One call for all where nothing is wrong.
    if not bool(torch.cat([table.reshape(-1) for table in tables]).isnan().any()):
        return []
    return [i for i, S in enumerate(spectra) if bool(S.isinf().any())]


def scaled(A: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (..., m, n) over powers of two, in the dtype of results, and their exponents (...).

    Differentiable.
    """
    _, exponent, _ = numerics.normalize(A.detach().to(numerics.result_dtype(A.dtype)))
    wide = A.to(numerics.result_dtype(A.dtype))
    return numerics.scale(wide, -exponent[..., None, None]), exponent


def rescaled(table: Tensor, exponent: Tensor) -> Tensor:
    """Return a table (..., 7) of a matrix that was divided by 2**exponent, as of the matrix."""
    norms = torch.tensor(_NORMS, device=table.device)
    return torch.where(norms, numerics.scale(table, exponent[..., None]), table)


def mend(
    tensors: Sequence[Tensor],
    spectra: Sequence[Tensor],
    tables: list[Tensor],
    solve: Callable[[list[Tensor], list[int]], list[Tensor]],
) -> list[Tensor]:
    """Return ``tables`` with those that overflowed solved anew, from scaled matrices.

    Args:
        tensors: (..., m, n) matrices, with ``spectra`` and ``tables``.
        spectra: (..., r) each.
        tables: (..., 7) each.
        solve: the tables of scaled matrices, given with their places in the list.
    """
    which = overflowed(spectra, tables)
    if not which:
        return tables
    smaller = [scaled(tensors[i]) for i in which]
    anew = solve([A for A, _ in smaller], which)
    mended = list(tables)
    # All of a batch: a selection would hand gradients of what is infinite on.
    for i, table, (_, exponent) in zip(which, anew, smaller, strict=True):
        mended[i] = rescaled(table, exponent)
    return mended
