"""Packed copies of many matrices with what one pass over them tells."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_kernels.entry.readable import resolved_list
from spectral_kernels.entry.results import Snapshot
from spectral_kernels.runtime import dispatch, schemas


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


def _kernel(A: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    module = dispatch.backend("snapshot", A[0].device.type)
    result: tuple[list[Tensor], Tensor] = module.snapshot(A)
    return result


schemas.implement("snapshot", _kernel)
schemas.not_differentiable("snapshot", "copy with torch where a gradient is wanted")
