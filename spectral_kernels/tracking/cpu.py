"""Adapter to the compiled kernels: one call for a ragged list of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.compiled_arguments import matrix_argument
from spectral_kernels.numerics import DTYPE_CODES, result_dtype
from spectral_kernels.results import SVD
from spectral_kernels.tracking import torch_backend
from spectral_kernels.tracking.state import NOT_FINITE, WORK, State, Tracked

_Job = tuple[int | float, ...]


class _Batch:
    """Results of one batch (B, m, n), and the addresses that the kernel needs."""

    def __init__(self, A: Tensor, state: State, tolerance: float) -> None:
        batch, m, n = A.shape
        r = min(m, n)
        dtype = result_dtype(A.dtype)
        Ut = torch.empty(batch, r, m, dtype=dtype)
        S = torch.empty(batch, r, dtype=dtype)
        Vh = torch.empty(batch, r, n, dtype=dtype)
        bounds = torch.empty(batch, r, dtype=torch.float64)
        identities = torch.empty(batch, r, dtype=torch.int64)
        self.report = torch.empty(batch, 2, dtype=torch.float64)
        self.state = state
        self.tolerance = tolerance
        self.tracked = Tracked(SVD(Ut.mT, S, Vh), bounds, self.report[:, 1], identities, [])
        self._matrix, self._owner = matrix_argument(A)
        self._size = A.element_size()
        arrays = (state.drift, state.names, Ut, S, Vh, bounds, identities, self.report)
        self._places = [(x.data_ptr(), x.stride(0) * x.element_size()) for x in arrays]

    def jobs(self) -> list[_Job]:
        """One job per matrix.

        Addresses come by arithmetic: a tensor for every matrix of a batch costs more than its job.
        """
        start, code, _, m, n, step, row, column = self._matrix
        v = self.state.vectors
        single = int(v.dtype == torch.float32)
        first, each = v.data_ptr(), v.stride(0) * v.element_size()
        jobs = []
        for i, warm in enumerate(self.state.warm):
            argument = (start + i * step * self._size, code, 1, m, n, 0, row, column)
            rest = [place + i * stride for place, stride in self._places]
            jobs.append((*argument, first + i * each, single, int(warm), self.tolerance, *rest))
        return jobs

    def finish(self) -> bool:
        """Read the report; returns whether a matrix was cold and no longer is."""
        warmed = False
        work = self.tracked.work
        work.clear()
        for i, code in enumerate(self.report[:, 0].tolist()):
            work.append(WORK[int(code)] if code >= 0 else NOT_FINITE)
            if code >= 0 and not self.state.warm[i]:
                self.state.warm[i] = warmed = True
        return warmed


class Updates:
    """Updates of batches (B, m, n) and their states, as far as possible in one compiled call."""

    def __init__(self, matrices: list[Tensor], states: list[State], tolerance: float) -> None:
        self._batches: list[_Batch] = []
        self._entries: list[_Batch | torch_backend.Updates] = []
        for A, state in zip(matrices, states, strict=True):
            if _C.track_supported(DTYPE_CODES[A.dtype], *A.shape[1:]):
                self._batches.append(_Batch(A, state, tolerance))
                self._entries.append(self._batches[-1])
            else:
                self._entries.append(torch_backend.prepare([A], [state], tolerance))
        self._jobs = self._all_jobs()

    def _all_jobs(self) -> list[_Job]:
        return [job for batch in self._batches for job in batch.jobs()]

    def run(self) -> list[Tracked]:
        """Return the factors of each batch; its state is overwritten with the new one."""
        if self._jobs:
            _C.track(self._jobs, torch.get_num_threads())
        warmed = [batch.finish() for batch in self._batches]
        if any(warmed):
            self._jobs = self._all_jobs()
        return [
            entry.tracked if isinstance(entry, _Batch) else entry.run()[0]
            for entry in self._entries
        ]


def prepare(matrices: list[Tensor], states: list[State], tolerance: float) -> Updates:
    """Return the updates of matrices that lie where they lie now."""
    return Updates(matrices, states, tolerance)
