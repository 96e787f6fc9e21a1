"""Adapter to the compiled kernels: the diagonals of all pairs in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.numerics import DTYPE_CODES


def diagonals(pairs: list[tuple[Tensor, Tensor]], k: int) -> list[Tensor]:
    """Return |sum_a U[a, i] Vh[i, a]| for i < k, of each pair U (..., m, r), Vh (..., r', m)."""
    results = []
    jobs = []
    owners = []
    for U, Vh in pairs:
        *batch, length, r = U.shape
        count = min(k, r, Vh.shape[-2])
        if length == 0 or U.numel() == 0 or Vh.numel() == 0:
            results.append(torch.zeros((*batch, count), dtype=U.dtype))
            continue
        out = torch.empty(*batch, count, dtype=U.dtype)
        results.append(out)
        code = DTYPE_CODES[U.dtype]
        if not batch:
            (u_row, u_column), (v_row, v_column) = U.stride(), Vh.stride()
            left = (U.data_ptr(), code, u_row, u_column)
            right = (Vh.data_ptr(), v_row, v_column)
            jobs.append((*left, *right, length, count, out.data_ptr()))
            continue
        # Batches as pointer arithmetic: slicing costs a microsecond per tensor.
        u, v, size = U.flatten(0, -3), Vh.flatten(0, -3), U.element_size()
        owners += [u, v]
        u_step, u_row, u_column = u.stride()
        v_step, v_row, v_column = v.stride()
        for b in range(u.shape[0]):
            left = (u.data_ptr() + b * u_step * size, code, u_row, u_column)
            right = (v.data_ptr() + b * v_step * size, v_row, v_column)
            jobs.append((*left, *right, length, count, out.data_ptr() + b * count * size))
    if jobs:
        _C.alignment_diagonals(jobs, torch.get_num_threads())
    return results
