"""Convolutions as matrices: one (c_out, c_in * taps) for each group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from spectral_monitor.model.matrices import MatrixView, ParameterInfo, Skip
from torch import Tensor

__all__ = ["kernels", "transposed_kernels"]


def kernels(info: ParameterInfo, groups: int) -> Sequence[MatrixView] | Skip:
    """Of a weight (c_out, c_in / groups, taps...)."""
    weight = info.tensor
    rows, channels = weight.shape[0] // groups, weight.shape[1]

    def group(g: int) -> Callable[[Tensor], Tensor]:
        return lambda t: t[g * rows : (g + 1) * rows].flatten(1)

    return _groups(info, groups, rows, channels, group)


def transposed_kernels(info: ParameterInfo, groups: int) -> Sequence[MatrixView] | Skip:
    """Of a weight (c_in, c_out / groups, taps...): the groups lie along the inputs here."""
    weight = info.tensor
    channels, rows = weight.shape[0] // groups, weight.shape[1]

    def group(g: int) -> Callable[[Tensor], Tensor]:
        return lambda t: t[g * channels : (g + 1) * channels].transpose(0, 1).flatten(1)

    return _groups(info, groups, rows, channels, group)


def _groups(
    info: ParameterInfo,
    groups: int,
    rows: int,
    channels: int,
    group: Callable[[int], Callable[[Tensor], Tensor]],
) -> Sequence[MatrixView] | Skip:
    """One (rows, channels * taps) matrix per group of a convolution."""
    if groups > 1 and rows * channels == 1:
        return Skip("depthwise: every group is one kernel, a vector")
    taps, centre = _kernel(info)
    return [
        MatrixView(
            "conv",
            group(g),
            f"[group {g}]" if groups > 1 else "",
            taps,
            centre,
            first_output=g * rows,
            outputs=groups * rows,
            first_input=g * channels,
            inputs=groups * channels,
        )
        for g in range(groups)
    ]


def _kernel(info: ParameterInfo) -> tuple[int, int]:
    """Taps of a kernel and the index of its centre, in row-major order."""
    sizes = info.tensor.shape[2:]
    centre = 0
    for size in sizes:
        centre = centre * size + size // 2
    return math.prod(sizes), centre
