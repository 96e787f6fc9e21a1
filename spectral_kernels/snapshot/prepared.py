"""Snapshots of the same matrices again and again, prepared once."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.results import Snapshot
from spectral_kernels.runtime import dispatch

_Place = tuple[int, torch.Size, tuple[int, ...], torch.dtype, torch.device]


class PreparedSnapshot:
    """``snapshot_list`` of matrices whose memory stays, as that of parameters does.

    A run writes the same tensors each time, so that what reads them can be captured in a CUDA
    graph; on a GPU with Triton it is one launch, allocates nothing and waits for nothing. Runs of
    one object share memory, so they belong on one stream.

    Args:
        matrices: at least one tensor (..., m, n), all on one device, any strides. They are kept.
    """

    def __init__(self, matrices: list[Tensor]) -> None:
        matrices = [A.detach() for A in matrices]
        self._places = [_place(A) for A in matrices]
        module = dispatch.backend("snapshot", matrices[0].device.type)
        self._copies = module.Copies(matrices)
        self._snapshot = Snapshot(self._copies.copies, *self._copies.statistics.unbind(-1))

    def fits(self, matrices: list[Tensor]) -> bool:
        """Whether these lie where the matrices that this was made of do, in the same layout."""
        return [_place(A) for A in matrices] == self._places

    def run(self) -> Snapshot:
        """Return the snapshot of the matrices as they are now; the next run overwrites it."""
        with torch.no_grad():
            self._copies.run()
        return self._snapshot


def _place(A: Tensor) -> _Place:
    return A.data_ptr(), A.shape, A.stride(), A.dtype, A.device
