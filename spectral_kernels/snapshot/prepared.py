"""Snapshots of the same matrices again and again, prepared once."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import Snapshot
from spectral_kernels.runtime import dispatch
from spectral_kernels.runtime.memory import Memory


class PreparedSnapshot:
    """``snapshot_list`` of matrices whose memory stays, as that of parameters does.

    A run writes the same tensors each time, so that what reads them can be captured in a CUDA
    graph; on a GPU with Triton it is one launch, allocates nothing and waits for nothing. Runs of
    one object share memory, so they belong on one stream.

    Args:
        matrices: at least one tensor (..., m, n), all on one device, any strides. They are kept.
    """

    def __init__(self, matrices: list[Tensor]) -> None:
        self._memory = Memory(matrices)
        module = dispatch.backend("snapshot", matrices[0].device.type)
        self._copies = module.Copies(self._memory.tensors)
        self._snapshot = Snapshot(self._copies.copies, *self._copies.statistics.unbind(-1))

    def fits(self, matrices: list[Tensor]) -> bool:
        """Whether these lie where the matrices that this was made of do, in the same layout."""
        return self._memory.is_of(matrices)

    def run(self) -> Snapshot:
        """Return the snapshot of the matrices as they are now; the next run overwrites it."""
        with torch.no_grad():
            self._copies.run()
        return self._snapshot
