"""Which steps of a monitor a device can take without being waited for, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spectral_monitor.model.matrix import Kept, Matrix, tensors_of
from spectral_monitor.step.comparisons import Comparisons
from spectral_monitor.step.solvers import Solver
from spectral_monitor.step.tracked_solver import TrackedSolver
from torch import Tensor

from spectral_kernels.runtime.dispatch import backend
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.tracking.leading.state import block_width


def never(solver: Solver, comparisons: Comparisons) -> str | None:
    """Why no step is left to a device: what the model and the options of a monitor rule out."""
    if not isinstance(solver, TrackedSolver):
        return "method 'tracked' alone goes on from vectors on the device"
    if comparisons.changes.matrices:
        return "updates and gradients are solved from scratch"
    if comparisons.reference.wants_final:
        return "reference 'final' saves the vectors of every step"
    return None


def unrecorded(matrices: Sequence[Matrix]) -> str | None:
    """Why a step on a device cannot be recorded, since the host waits in it."""
    decomposed = [matrix.name for matrix in matrices if matrix.is_decomposed]
    if not decomposed:
        return None
    return (
        "which factors of decomposed layers need Householder's QR is read from the device "
        f"({', '.join(decomposed[:3])})"
    )


def not_these(given: Sequence[Kept], solver: TrackedSolver, kind: str) -> str | None:
    """Why these matrices, where they lie now, are not left to a device of this ``kind``."""
    views = [x for kept in given for x in tensors_of(kept)]
    devices = {view.device for view in views}
    if len(devices) > 1:
        return f"the weights are on several devices ({', '.join(sorted(map(str, devices)))})"
    device = views[0].device.type
    if device != kind:
        return f"the weights are on the device {device!r}"
    if len({result_dtype(view.dtype) for view in views}) > 1:
        return "results of several dtypes: some weights are float64"
    if not solver.tracks_all_values:
        return "some short sides are too long to track all values (see k)"
    return None if device == "cpu" else _waiting(given, solver, device)


def _waiting(given: Sequence[Kept], solver: TrackedSolver, device: str) -> str | None:
    """Why the host waits in an update: its backend reads numbers of the device on the way."""
    leading = [_solved(given[i]) for i in solver.leading]
    for operation in ["tracking.whole"] + ["tracking.leading"] * bool(leading):
        if backend(operation, device).__name__.endswith("torch_backend"):
            return f"{operation} runs in plain torch, which reads its bounds as it goes"
    for A in leading:
        width = block_width(solver.k, A.shape[0], A.shape[1])
        if not backend("tracking.leading", device).supported(A, width):
            return f"k = {solver.k} of a {str(A.dtype).removeprefix('torch.')} matrix has no kernel"
        # The small problem of every iteration.
        if backend("svd", device).svd_waits(width, width, torch.float64, A.device):
            return f"k = {solver.k} needs an SVD of side {width} that runs in plain torch"
    return None


def _solved(kept: Kept) -> Tensor:
    """A tensor like what a tracker is given: the matrix, or the core of its factors."""
    if isinstance(kept, Tensor):
        return kept
    (m, k), n = kept.U.shape, kept.Vh.shape[1]
    core: Tensor = kept.U.new_empty((min(m, k), min(k, n)))
    return core


def not_now(matrices: Sequence[Matrix], started: Sequence[bool]) -> str | None:
    """Why this step is not left to a device: what earlier steps have not made yet."""
    cold = [m.name for m, warm in zip(matrices, started, strict=True) if not warm]
    if cold:
        return f"there are no vectors to go on from yet ({', '.join(cold[:3])})"
    return None
