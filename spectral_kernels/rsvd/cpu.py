"""Adapter to the compiled kernels: one call for a ragged list of matrices."""

from __future__ import annotations

import torch

from spectral_kernels import _C
from spectral_kernels.entry.results import SVD
from spectral_kernels.rsvd.normals import Sketch
from spectral_kernels.runtime.memory import matrix_argument
from spectral_kernels.runtime.schemas import new_triplets


def rsvd(sketches: list[Sketch], seed: int, power_iters: int) -> list[SVD]:
    """Return k leading triplets of each matrix."""
    results = []
    jobs = []
    owners = []
    for A, start, k, width, number in sketches:
        U, S, Vh = new_triplets(A, k)
        results.append(SVD(U, S, Vh))
        if A.numel():
            argument, owner = matrix_argument(A)
            columns = start.to(S.dtype).contiguous()
            owners += [owner, columns]
            block = (columns.data_ptr(), columns.shape[-1], seed, number)
            outputs = (U.data_ptr(), S.data_ptr(), Vh.data_ptr())
            jobs.append((*argument, *block, k, width, power_iters, *outputs))
    if jobs:
        _C.rsvd(jobs, torch.get_num_threads())
    return results
