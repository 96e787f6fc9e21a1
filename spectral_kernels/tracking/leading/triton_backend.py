"""Leading triplets on a GPU: one iteration an update, of which the host waits for nothing.

After the first run nothing is read back and all results and states stay where they are, so that a
run can be captured in a CUDA graph. The certificate is told as it is; a matrix whose block has lost
its values, or does not follow them, is marked and started anew before a later run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectral_kernels.rsvd.triton_launch import WIDEST
from spectral_kernels.tracking import results
from spectral_kernels.tracking.leading import torch_backend
from spectral_kernels.tracking.leading.state import Block, Schedule
from spectral_kernels.tracking.leading.triton_group import Group
from spectral_kernels.tracking.results import Tracked


def supported(A: Tensor, width: int) -> bool:
    """Whether the kernels take a matrix: not float64, for which their products are too coarse."""
    return A.dtype != torch.float64 and width <= WIDEST


def prepare(
    matrices: list[Tensor],
    blocks: list[Block],
    ks: list[int],
    schedule: Schedule,
    tolerance: float,
) -> results.Updates:
    """Prepare updates of batches (B, m, n), whose blocks live on the device from now on.

    Where the kernels do not take one of them, the updates of all wait.
    """
    if all(supported(A, x.vectors.shape[-1]) for A, x in zip(matrices, blocks, strict=True)):
        return Updates(matrices, blocks, ks, schedule, tolerance)
    return torch_backend.prepare(matrices, blocks, ks, schedule, tolerance)


class Updates:
    """Updates of batches (B, m, n) in memory that stays, and their blocks.

    Args:
        matrices, blocks, ks: one of each per batch.
        schedule: says when there are fresh columns; its count is kept on the device from now on.
        tolerance: of the largest value.
    """

    def __init__(
        self,
        matrices: list[Tensor],
        blocks: list[Block],
        ks: list[int],
        schedule: Schedule,
        tolerance: float,
    ) -> None:
        device = matrices[0].device
        self.updates = torch.full((1,), int(schedule.updates), dtype=torch.int64).to(device)
        schedule.updates = self.updates
        counts = [len(A) for A in matrices]
        self.lost = torch.zeros(sum(counts), dtype=torch.bool, device=device)
        flags = torch.split(self.lost, counts)
        members: dict[tuple[object, ...], list[int]] = {}
        for i, (A, k) in enumerate(zip(matrices, ks, strict=True)):
            members.setdefault((A.shape, A.stride(), A.dtype, k), []).append(i)
        self._groups = [
            Group([blocks[i] for i in own], own, ks[own[0]], tolerance, schedule.every, device)
            for own in members.values()
        ]
        self._results: list[Tracked | None] = [None] * len(matrices)
        for group in self._groups:
            group.bind(matrices)
            for i, result in group.allocate(flags):
                self._results[i] = result
        for group in self._groups:
            group.start_cold()

    def run(self) -> list[Tracked]:
        """Return k triplets of each batch; its block is overwritten with the new one."""
        for group in self._groups:
            group.run(self.updates)
        self.updates += 1
        return [result for result in self._results if result is not None]

    def rebind(self, matrices: list[Tensor]) -> None:
        """Read from other memory from now on: matrices of the same shapes, types and layouts."""
        for group in self._groups:
            group.bind(matrices)

    def resolve(self, which: Sequence[Sequence[int]]) -> int:
        """Start blocks anew for the next run, see `LateUpdates`; does not wait."""
        for group in self._groups:
            group.start_anew(which)
        return sum(map(len, which))
