"""Launchers of the Triton kernels: all pairs in one launch, all clusters in one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectral_kernels.alignment import triton_cluster_kernels, triton_kernels
from spectral_kernels.alignment.prepared import ComparedSpectra
from spectral_kernels.runtime.numerics import DTYPE_CODES
from spectral_kernels.runtime.triton.host import (
    batch_offsets,
    launch,
    on_device,
    unrolled,
)

Pairs = Sequence[tuple[Tensor, Tensor]]


def plan(clusters: bool) -> dict[str, Any]:
    """Return the launch parameters of the alignments.

    Vectors of 768 entries are read in 12 steps. 50 pairs of 100 vectors are 350 programs, so that
    each of 132 multiprocessors has two or three, and 31 MB of float32. Not measured.
    """
    sizes = {"CLUSTERS": clusters, "ROWS": 16, "LENGTH": 64, "DEPTH": 32, "BLOCK": 64}
    return {**sizes, "num_warps": 4, "num_stages": 1}


def cluster_plan() -> dict[str, int]:
    """Return the launch parameters of the clusters: one warp, so that a scan stays in it."""
    return {"BLOCK": 64, "num_warps": 1, "num_stages": 1}


class Alignments:
    """The alignments of pairs that stay where they are, in one launch; see the compiled ones."""

    def __init__(
        self,
        pairs: Pairs,
        lines: Sequence[Tensor],
        cosines: Sequence[Tensor],
        first: Sequence[Tensor],
    ) -> None:
        device = pairs[0][0].device
        self._owners = (pairs, lines, cosines, first)
        self._plan = plan(bool(first))
        count = sum(line.numel() for line in lines)
        sums = torch.empty(count, dtype=torch.float64, device=device)
        jobs = _jobs(pairs, lines, cosines, first, sums.data_ptr())
        jobs[:, 12] = jobs[:, 8].cumsum(0) - jobs[:, 8]
        jobs[:, 13] = (jobs[:, 8] + self._plan["ROWS"] - 1) // self._plan["ROWS"]
        owner = torch.repeat_interleave(torch.arange(len(jobs)), jobs[:, 13])
        begin = jobs[:, 13].cumsum(0) - jobs[:, 13]
        tiles = torch.stack((owner, torch.arange(len(owner)) - begin[owner]), dim=1)
        self._programs = len(tiles)
        self._arguments = {
            "base_ptr": sums.view(torch.uint8),
            "jobs_ptr": on_device(jobs, device),
            "tiles_ptr": on_device(tiles, device),
            "sums_ptr": sums,
            "arrived_ptr": torch.zeros(len(jobs), dtype=torch.int32, device=device),
        }

    def run(self) -> None:
        """Fill ``lines`` and ``cosines``: one launch, nothing is allocated."""
        beside = self._arguments["sums_ptr"]
        launch(triton_kernels.alignments, self._programs, beside, **self._arguments, **self._plan)


def _jobs(
    pairs: Pairs,
    lines: Sequence[Tensor],
    cosines: Sequence[Tensor],
    first: Sequence[Tensor],
    base: int,
) -> Tensor:
    """Return the kernel's table of jobs, one a pair with batches unrolled, but for its last two."""
    jobs, steps = [], []
    for i, ((U, Vh), line) in enumerate(zip(pairs, lines, strict=True)):
        k = line.shape[-1]
        strides = [U.stride(-2), U.stride(-1), Vh.stride(-1), Vh.stride(-2)]
        clustered = [0, 0]
        if first:
            clustered = [cosines[i].data_ptr() - base, first[i].data_ptr() - base]
        begin = [U.data_ptr() - base, Vh.data_ptr() - base, DTYPE_CODES[U.dtype]]
        jobs.append([*begin, *strides, U.shape[-2], k, line.data_ptr() - base, *clustered, 0, 0])
        size = k * U.element_size()
        steps.append([0] * 9 + [size, size, 8 * k, 0, 0])
    left = [batch_offsets(U) for U, _ in pairs]
    table = unrolled(jobs, [len(x) for x in left], steps)
    table[:, 0] += torch.cat(left)
    table[:, 1] += torch.cat([batch_offsets(Vh) for _, Vh in pairs])
    return table


class Clusters:
    """``singular_value_clusters`` of spectra that stay where they are."""

    def __init__(self, spectra: ComparedSpectra) -> None:
        values, bounds, compared, lengths, unseen, follows, first, alone = spectra
        starts = list(itertools.accumulate(lengths, initial=0))[:-1]
        jobs = torch.tensor(list(zip(starts, lengths, unseen, map(int, follows), strict=True)))
        self._programs = len(lengths)
        self._arguments = {
            "values_ptr": values,
            "bounds_ptr": bounds,
            "jobs_ptr": on_device(jobs, values.device),
            "other_ptr": compared[0],
            "errors_ptr": compared[1],
            "first_ptr": first,
            "alone_ptr": alone.view(torch.uint8),
        }

    def run(self) -> None:
        """Find the clusters of the values as they are now."""
        beside = self._arguments["first_ptr"]
        launch(
            triton_cluster_kernels.clusters,
            self._programs,
            beside,
            **self._arguments,
            **cluster_plan(),
        )
