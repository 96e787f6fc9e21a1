"""Updates on a GPU that wait for nothing: everything is decided, counted and kept on the device.

After the first run no call of the host depends on a result, nothing is allocated that outlives an
update, and all buffers stay where they are: a run can be captured in a CUDA graph and replayed.
Vectors turn as often as on the CPU. A matrix whose bounds then still exceed the tolerance is lost:
its values stand, with these bounds, and it is to be solved anew before a later run (`resolve`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.tracking.results import Tracked, Work
from spectral_kernels.tracking.whole.anew import solve_anew
from spectral_kernels.tracking.whole.groups import Member, grouped, workspace_length
from spectral_kernels.tracking.whole.state import WORK, State
from spectral_kernels.tracking.whole.triton_steps import Chunk

# A member, which of its matrices, and where in a chunk they go.
_Copy = tuple[Member, slice, slice]


class Outputs:
    """What is told of all matrices, in the order of the list: a block for each kind of number.

    ``S`` by type of result and ``bounds``, ``identities``: the values of all matrices, one after
    the other; ``codes``, ``lost``, ``error_norms``: an entry for each matrix.
    """

    def __init__(self, matrices: list[Tensor]) -> None:
        device = matrices[0].device
        self.dtypes = [result_dtype(A.dtype) for A in matrices]
        self.sides = [min(A.shape[1:]) for A in matrices]
        self.counts = [len(A) for A in matrices]
        lengths = [count * r for count, r in zip(self.counts, self.sides, strict=True)]
        total, count = sum(lengths), sum(self.counts)
        self.S = {
            dtype: torch.empty(
                sum(n for n, other in zip(lengths, self.dtypes, strict=True) if other == dtype),
                dtype=dtype,
                device=device,
            )
            for dtype in set(self.dtypes)
        }
        self.bounds = torch.empty(total, dtype=torch.float64, device=device)
        self.identities = torch.empty(total, dtype=torch.int64, device=device)
        self.codes = torch.empty(count, dtype=torch.int64, device=device)
        self.lost = torch.zeros(count, dtype=torch.bool, device=device)
        self.error_norms = torch.empty(count, dtype=torch.float64, device=device)

    def slots(self) -> list[list[list[int]]]:
        """For each entry and matrix: its place, that of its first value and of its first S."""
        places = []
        at = first = 0
        used = dict.fromkeys(self.S, 0)
        for dtype, r, count in zip(self.dtypes, self.sides, self.counts, strict=True):
            places.append([[at + i, first + i * r, used[dtype] + i * r] for i in range(count)])
            at, first, used[dtype] = at + count, first + count * r, used[dtype] + count * r
        return places


class Updates:
    """Updates of batches (B, m, n) and their states, which live here from now on."""

    def __init__(self, matrices: list[Tensor], states: list[State], tolerance: float) -> None:
        self._matrices, self._states = matrices, states
        self._device = matrices[0].device
        self._out = Outputs(matrices)
        self._groups = grouped(matrices)
        slots = self._out.slots()
        for group in self._groups:
            group.allocate(
                states, [slot for member in group.members for slot in slots[member.entry]]
            )
        self._place = {m.entry: (group, m) for group in self._groups for m in group.members}
        self._chunks = self._make_chunks(tolerance)
        self._tracked = [self._results(entry) for entry in range(len(matrices))]
        self._cold = [[i for i, on in enumerate(s.started()) if not on] for s in states]

    def _make_chunks(
        self, tolerance: float
    ) -> list[tuple[Chunk, list[tuple[Member, slice, slice]]]]:
        """Chunks, each with what to copy from a member to it."""
        planned = [(group, here) for group in self._groups for here in group.chunks()]
        longest = max(
            workspace_length(here.stop - here.start, group.long_side, group.r)
            for group, here in planned
        )
        memory = torch.empty(longest, dtype=torch.float64, device=self._device)
        chunks = []
        for group, here in planned:
            info = torch.finfo(group.dtype)
            thresholds = (tolerance, info.eps, info.smallest_normal * info.eps)
            settings = torch.tensor(thresholds, dtype=torch.float64).to(self._device)
            chunk = Chunk(group, here, memory, settings)
            copies = [(member, *_overlap(member, here)) for member in group.members]
            chunks.append((chunk, [copy for copy in copies if copy[1].start < copy[1].stop]))
        return chunks

    def _results(self, entry: int) -> Tracked:
        group, member = self._place[entry]
        out = self._out
        matrix, first, first_s = (int(x) for x in group.slots[member.start])
        matrices = slice(matrix, matrix + member.count)
        shape, length = (member.count, group.r), member.count * group.r
        S = out.S[group.dtype][first_s : first_s + length].view(shape)
        return Tracked(
            group.svd(member, S),
            out.bounds[first : first + length].view(shape),
            out.error_norms[matrices],
            out.identities[first : first + length].view(shape),
            Work(out.codes[matrices], out.lost[matrices], WORK),
        )

    @property
    def lost(self) -> Tensor:
        """(sum of B,) bool: the matrices whose bounds exceed the tolerance."""
        return self._out.lost

    def rebind(self, matrices: list[Tensor]) -> None:
        """Read from other memory from now on: matrices of the same shapes and types."""
        self._matrices = matrices

    def run(self) -> list[Tracked]:
        """Return the factors of each batch; its state is overwritten with the new one."""
        with _current(self._device):
            if self._cold:
                cold, self._cold = self._cold, []
                self._solve(cold)
            for chunk, copies in self._chunks:
                for member, there, here in copies:
                    A = self._matrices[member.entry][there]
                    chunk.space.X[here].copy_(A if member.tall else A.mT)
                chunk.normalise()
                chunk.update(self._out)
        return self._tracked

    def resolve(self, which: Sequence[Sequence[int]]) -> int:
        """Solve matrices anew, as they are now, for the next run; see `LateUpdates`.

        A matrix with NaN or Inf keeps its vectors. May wait for the device, as solvers do.
        """
        with _current(self._device):
            self._solve(which)
        # The device counts, which knows of what is not finite.
        return 0

    def _solve(self, which: Sequence[Sequence[int]]) -> None:
        for entry, indices in enumerate(which):
            if indices:
                group, member = self._place[entry]
                solved = self._states[entry].late_resolves
                solve_anew(self._matrices[entry], list(indices), group, member, solved)


def _overlap(member: Member, here: slice) -> tuple[slice, slice]:
    """Which matrices of a member lie in a stretch of its group, and where there."""
    first = max(member.start, here.start)
    last = min(member.start + member.count, here.stop)
    there = slice(first - member.start, last - member.start)
    return there, slice(first - here.start, last - here.start)


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Kernels are launched on the current device, wherever their arguments are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def prepare(matrices: list[Tensor], states: list[State], tolerance: float) -> Updates:
    """Return the updates of matrices that lie where they lie now."""
    return Updates(matrices, states, tolerance)
