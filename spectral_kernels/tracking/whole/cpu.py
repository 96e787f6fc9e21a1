"""Adapter to the compiled kernels: one call for a ragged list of batches."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels import _C
from spectral_kernels.entry.results import SVD
from spectral_kernels.runtime.memory import matrix_argument
from spectral_kernels.runtime.numerics import DTYPE_CODES, result_dtype
from spectral_kernels.runtime.program.op import Call
from spectral_kernels.tracking.results import SOLVED, Tracked, Work
from spectral_kernels.tracking.whole import torch_backend
from spectral_kernels.tracking.whole.state import WORK, State

_Job = tuple[int | float, ...]


class _Batch:
    """Results of one batch (B, m, n), and the addresses that the kernel needs.

    ``S``, ``bounds`` and ``identities`` (B r,), ``report`` (B, 2): its parts of blocks for all
    batches, which one copy then reads.
    """

    def __init__(
        self,
        A: Tensor,
        state: State,
        tolerance: float,
        S: Tensor,
        bounds: Tensor,
        report: Tensor,
        identities: Tensor,
    ) -> None:
        batch, m, n = A.shape
        r = min(m, n)
        dtype = result_dtype(A.dtype)
        Ut = torch.empty(batch, r, m, dtype=dtype)
        S, bounds = S.view(batch, r), bounds.view(batch, r)
        Vh = torch.empty(batch, r, n, dtype=dtype)
        identities = identities.view(batch, r)
        self.count = batch
        self.state = state
        self.tolerance = tolerance
        # Lost matrices are solved at once.
        work = Work(report[:, 0], torch.zeros(batch, dtype=torch.bool), WORK)
        self.tracked = Tracked(SVD(Ut.mT, S, Vh), bounds, report[:, 1], identities, work)
        self._matrix, self._owner = matrix_argument(A)
        self._size = A.element_size()
        arrays = (state.drift, state.names, Ut, S, Vh, bounds, identities, report)
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


class Updates:
    """Updates of batches (B, m, n) and their states, as far as possible in one compiled call."""

    def __init__(self, matrices: list[Tensor], states: list[State], tolerance: float) -> None:
        compiled = [_C.track_supported(DTYPE_CODES[A.dtype], *A.shape[1:]) for A in matrices]
        own = [A for A, ours in zip(matrices, compiled, strict=True) if ours]
        values = _blocks([(result_dtype(A.dtype), A.shape[0] * min(A.shape[1:])) for A in own])
        bounds = _blocks([(torch.float64, len(S)) for S in values])
        self._report = torch.empty(sum(len(A) for A in own), 2, dtype=torch.float64)
        reports = torch.split(self._report, [len(A) for A in own])
        identities = _blocks([(torch.int64, len(S)) for S in values])
        parts = zip(values, bounds, reports, identities, strict=True)
        self._batches: list[_Batch] = []
        self._entries: list[_Batch | torch_backend.Updates] = []
        for A, state, ours in zip(matrices, states, compiled, strict=True):
            if ours:
                self._batches.append(_Batch(A, state, tolerance, *next(parts)))
                self._entries.append(self._batches[-1])
            else:
                self._entries.append(torch_backend.prepare([A], [state], tolerance))
        self._codes = self._report.numpy()[:, 0]
        self._cold = True
        self._jobs = self._all_jobs()

    def _warm_up(self) -> None:
        """Note which matrices have vectors now; their jobs say so from the next run on."""
        codes = iter(self._codes.tolist())
        for batch in self._batches:
            warm = batch.state.warm
            # Every one takes its code.
            warm[:] = [next(codes) >= 0 or was for was in warm]
        self._cold = not all(warm for batch in self._batches for warm in batch.state.warm)
        self._jobs = self._all_jobs()

    def _all_jobs(self) -> list[_Job]:
        return [job for batch in self._batches for job in batch.jobs()]

    @property
    def calls(self) -> list[Call] | None:
        """What a run asks of the compiled module; None where that is not all of it."""
        return [("track", self._jobs)] if len(self._batches) == len(self._entries) else None

    def settle(self) -> tuple[bool, bool]:
        """After a run: whether ``calls`` are others now, and whether a matrix was solved anew."""
        was_cold = self._cold
        if was_cold:
            self._warm_up()
        return was_cold, bool((self._codes == SOLVED).any())

    def run(self) -> list[Tracked]:
        """Return the factors of each batch; its state is overwritten with the new one."""
        if self._jobs:
            _C.track(self._jobs, torch.get_num_threads())
        self.settle()
        return [
            entry.tracked if isinstance(entry, _Batch) else entry.run()[0]
            for entry in self._entries
        ]


def _blocks(parts: list[tuple[torch.dtype, int]]) -> list[Tensor]:
    """Return 1-D tensors of these types and lengths; those of one type share a block."""
    free = {
        dtype: torch.empty(sum(size for other, size in parts if other == dtype), dtype=dtype)
        for dtype in {dtype for dtype, _ in parts}
    }
    blocks = []
    for dtype, size in parts:
        blocks.append(free[dtype][:size])
        free[dtype] = free[dtype][size:]
    return blocks


def prepare(matrices: list[Tensor], states: list[State], tolerance: float) -> Updates:
    """Return the updates of matrices that lie where they lie now."""
    for A, state in zip(matrices, states, strict=True):
        state.to_host(A.device)
    return Updates(matrices, states, tolerance)
