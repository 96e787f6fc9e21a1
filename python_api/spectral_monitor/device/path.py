"""Which steps of a monitor a device can take without being waited for, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spectral_monitor.model.matrix import Matrix
from spectral_monitor.step.comparisons import Comparisons
from spectral_monitor.step.solvers import Solver
from spectral_monitor.step.tracked_solver import TrackedSolver
from torch import Tensor

from spectral_kernels.runtime.dispatch import backend
from spectral_kernels.runtime.numerics import result_dtype
from spectral_kernels.tracking.leading.state import block_width


def never(matrices: Sequence[Matrix], solver: Solver, comparisons: Comparisons) -> str | None:
    """Why no step is left to a device: what the model and the options of a monitor rule out."""
    decomposed = [matrix.name for matrix in matrices if matrix.is_decomposed]
    if decomposed:
        return (
            "cores of decomposed layers are made, and their vectors lifted, by calls of their own "
            f"({', '.join(decomposed[:3])})"
        )
    if not isinstance(solver, TrackedSolver):
        return "method 'tracked' alone goes on from vectors on the device"
    if comparisons.changes.matrices:
        return "updates and gradients are solved from scratch"
    if comparisons.reference.wants_final:
        return "reference 'final' saves the vectors of every step"
    return None


def not_these(views: Sequence[Tensor], solver: TrackedSolver, kind: str) -> str | None:
    """Why these matrices, where they lie now, are not left to a device of this ``kind``."""
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
    return None if device == "cpu" else _waiting(views, solver, device)


def _waiting(views: Sequence[Tensor], solver: TrackedSolver, device: str) -> str | None:
    """Why the host waits in an update: its backend reads numbers of the device on the way."""
    leading = [views[i] for i in solver.leading]
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


def not_now(matrices: Sequence[Matrix], started: Sequence[bool]) -> str | None:
    """Why this step is not left to a device: what earlier steps have not made yet."""
    cold = [m.name for m, warm in zip(matrices, started, strict=True) if not warm]
    if cold:
        return f"there are no vectors to go on from yet ({', '.join(cold[:3])})"
    return None
