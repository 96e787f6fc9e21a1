"""Packed copies of many matrices with what one pass over them tells: once, or prepared."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.readable import resolved_list
from spectral_kernels.entry.results import Snapshot
from spectral_kernels.runtime import dispatch, schemas
from spectral_kernels.runtime.memory import Memory
from spectral_kernels.runtime.numerics import result_dtype


def snapshot_list(matrices: list[Tensor]) -> Snapshot:
    """Copy many matrices (views of parameters, say) into packed memory in one pass.

    Casts float16 and bfloat16 to float32 and makes everything contiguous. Without gradients, and
    unchecked but for whether it can be read (`readable.resolved`). For a matrix with NaN or Inf,
    ``max_abs`` and ``frobenius_norm`` are not finite and ``finite`` is 0.

    Args:
        matrices: tensors (..., m, n) on one device, any strides.

    Returns:
        ``Snapshot``; its statistics have one entry per matrix, batches unrolled in order.
    """
    if not matrices:
        return Snapshot([], *torch.empty((0, 3), dtype=torch.float64).unbind(-1))
    with torch.no_grad():
        copies, statistics = _kernel(resolved_list(matrices))
    return Snapshot(copies, *statistics.unbind(-1))


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
        copies = getattr(module, "packed", _apart)(self._memory.tensors)
        self._copies = module.Copies(self._memory.tensors, copies)
        self._snapshot = Snapshot(copies, *self._copies.statistics.unbind(-1))

    def fits(self, matrices: list[Tensor]) -> bool:
        """Whether these lie where the matrices that this was made of do, in the same layout."""
        return self._memory.is_of(matrices)

    def run(self) -> Snapshot:
        """Return the snapshot of the matrices as they are now; the next run overwrites it."""
        with torch.no_grad():
            self._copies.run()
        return self._snapshot


def _apart(matrices: list[Tensor]) -> list[Tensor]:
    """Return memory for copies, of its own for each: an operator's results must not share it."""
    return [torch.empty(A.shape, dtype=result_dtype(A.dtype), device=A.device) for A in matrices]


def _kernel(A: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    copies = _apart(A)
    prepared = dispatch.backend("snapshot", A[0].device.type).Copies(A, copies)
    prepared.run()
    return copies, prepared.statistics


schemas.implement("snapshot", _kernel)
schemas.not_differentiable("snapshot", "copy with torch where a gradient is wanted")
